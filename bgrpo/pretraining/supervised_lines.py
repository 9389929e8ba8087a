"""Supervised lines as arrays, and their order: a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError, reading
from bgrpo.files import atomic_path
from bgrpo.groups import NEXT_PASSAGE
from bgrpo.policies.text import UnreadableText, encode_texts, end_of_answer
from bgrpo.scoring.readable_groups import encode_prompts, place
from bgrpo.seeds import places_of_stream
from bgrpo.tasks.base import Problem

IGNORED = -100  # target of a position that carries no loss
_CHUNK = 10_000  # lines tokenised at once


@dataclass(frozen=True, slots=True)
class Lines:
    """Tokenised lines, each ``prompt answer end``, back to back; prompts as of :func:`bgrpo.groups.passages_of`.

    Attributes:
        tokens: [total tokens] int32.
        starts: [lines + 1] int64; line i is ``tokens[starts[i]:starts[i + 1]]``.
        prompt_lengths: [lines] int32.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """[lines] tokens per line."""
        return np.diff(self.starts)

    @property
    def answer_lengths(self) -> np.ndarray:
        """[lines] tokens per line that carry loss, end token included."""
        return self.lengths - self.prompt_lengths

    def longest_passages(self) -> np.ndarray:
        """[lines] tokens of the longest passage of each prompt."""
        prompts = (
            self.tokens[start : start + size] for start, size in zip(self.starts, self.prompt_lengths, strict=False)
        )
        ends = (np.flatnonzero(np.append(prompt, NEXT_PASSAGE) == NEXT_PASSAGE) for prompt in prompts)
        return np.array([np.diff(np.concatenate(([-1], found))).max() - 1 for found in ends], np.int64)

    def take(self, indices: Sequence[int]) -> Lines:
        """Some of the lines, at least one, in the order of ``indices``."""
        parts = [self.tokens[self.starts[i] : self.starts[i + 1]] for i in indices]
        starts = np.concatenate([[0], np.cumsum(self.lengths[indices])]).astype(np.int64)
        return Lines(np.concatenate(parts), starts, self.prompt_lengths[indices])

    def save(self, path: Path) -> None:
        """Write as ``.npz``, complete or absent."""
        with atomic_path(path) as new, new.open("wb") as file:
            np.savez(file, tokens=self.tokens, starts=self.starts, prompt_lengths=self.prompt_lengths)

    @classmethod
    def load(cls, path: Path) -> Lines:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: missing or damaged.
        """
        with reading(f"{path}: the run's lines cannot be read"), np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["tokens"], arrays["starts"], arrays["prompt_lengths"])


def tokenise(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, where: str = "task.train", *, tried: bool = False
) -> Lines:
    """Tokenise each problem with its answer and an end token.

    Prompts are encoded as they are for rollouts, and answers as what the policy goes on with. After a chat's answer
    comes the token with which the chat template ends one.

    Args:
        problems: at least one.
        tokenizer: of the policy.
        where: they came from, for messages.
        tried: they have been tokenised before, see :func:`bgrpo.policies.text.encode_chats`.

    Raises:
        UserError: a problem without answer, or with a token that the vocabulary lacks.
    """
    tokens: list[np.ndarray] = []
    lengths: list[int] = []
    prompt_lengths: list[int] = []
    chat_end = _end_of_chats(problems, tokenizer, where, tried)
    for start in range(0, len(problems), _CHUNK):
        chunk = problems[start : start + _CHUNK]
        for index, problem in enumerate(chunk):
            if not problem.answer.strip():
                raise UserError(f"{place(where, chunk, index, start)}: has no answer to learn from")
        prompts = encode_prompts(tokenizer, chunk, where, start, tried=tried)
        try:
            answers = encode_texts(tokenizer, [_whole_answer(problem) for problem in chunk], continued=True)
        except UnreadableText as error:
            raise UserError(f"{place(where, chunk, error.index, start)}: its answer {error}") from error
        for problem, prompt, answer in zip(chunk, prompts, answers, strict=True):
            end = chat_end if problem.messages else tokenizer.eos_token_id
            line = np.array([*prompt, *answer, end], np.int32)
            tokens.append(line)
            lengths.append(len(line))
            prompt_lengths.append(len(prompt))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Lines(np.concatenate(tokens), starts, np.array(prompt_lengths, np.int32))


def _whole_answer(problem: Problem) -> str:
    return f"{problem.answer_prefix} {problem.answer}" if problem.answer_prefix else problem.answer


def _end_of_chats(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, where: str, tried: bool
) -> int | None:
    """What ends an answer in a chat; None where there is no chat."""
    for index, problem in enumerate(problems):
        if problem.messages:
            try:
                return end_of_answer(tokenizer, problem.messages, problem.answer, tried=tried)
            except UnreadableText as error:
                raise UserError(f"{place(where, problems, index)}: {error}") from error
    return None


class BatchOrder:
    """Which lines make up the batch of each step: each line once in an epoch, reshuffled for the next.

    The last batch of an epoch goes on into the next one.

    Lines are not grouped by length: batches of one length are batches of one kind of problem, and a policy learned
    markedly slower from them.
    """

    def __init__(self, lines: int, batch_size: int, seed: int) -> None:
        if lines < batch_size:
            raise UserError(f"{lines} training lines do not fill one batch of batch_size={batch_size}")
        self._lines = lines
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> np.ndarray:
        """[batch_size] indices of the lines of one step (0-based), a pure function of (seed, step)."""
        return places_of_stream(step * self._batch_size, self._batch_size, self._lines, self._epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """[lines] indices of one epoch."""
        random = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], np.uint64)))
        return random.permutation(self._lines)


def collate_for_encoder(lines: Lines, indices: np.ndarray, start_token: int) -> dict[str, Any]:
    """A batch for an encoder-decoder; answers are padded on the right.

    Args:
        lines: all of them.
        indices: of the batch.
        start_token: that the decoder begins with.

    Returns:
        ``prompts``, B of them, int64; ``input_ids`` [B, T + 1], what the decoder reads: the start token, then the
        answer; ``targets`` [B, T + 1], the same answer, :data:`IGNORED` elsewhere; int64.
    """
    width = int(lines.answer_lengths[indices].max())
    ids_BT = np.full((len(indices), width + 1), start_token, np.int64)
    targets_BT = np.full((len(indices), width + 1), IGNORED, np.int64)
    prompts = []
    for row, index in enumerate(indices):
        line = lines.tokens[lines.starts[index] : lines.starts[index + 1]].astype(np.int64)
        prompts.append(torch.from_numpy(line[: lines.prompt_lengths[index]]))
        answer = line[lines.prompt_lengths[index] :]
        ids_BT[row, 1 : 1 + len(answer)] = targets_BT[row, 1 : 1 + len(answer)] = answer
    return {"input_ids": torch.from_numpy(ids_BT), "targets": torch.from_numpy(targets_BT), "prompts": prompts}


def collate(lines: Lines, indices: np.ndarray, filler: int) -> dict[str, torch.Tensor]:
    """Right-padded batch.

    Padding on the right is never attended to by what carries loss, so no mask is needed, and any token will do as
    ``filler``; the end token avoids transformers' warning about pads without a mask.

    Returns:
        ``input_ids`` [B, T] and ``targets`` [B, T], int64; ``targets`` repeats the answer's tokens and the end token
        at their own positions and is :data:`IGNORED` on prompt and padding.
    """
    width = int(lines.lengths[indices].max())
    ids_BT = np.full((len(indices), width), filler, np.int64)
    targets_BT = np.full((len(indices), width), IGNORED, np.int64)
    for row, index in enumerate(indices):
        start, end, prompt = lines.starts[index], lines.starts[index + 1], lines.prompt_lengths[index]
        line = lines.tokens[start:end]
        ids_BT[row, : len(line)] = line
        targets_BT[row, prompt : len(line)] = line[prompt:]
    return {"input_ids": torch.from_numpy(ids_BT), "targets": torch.from_numpy(targets_BT)}
