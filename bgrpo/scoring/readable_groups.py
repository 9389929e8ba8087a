"""From problems to groups whose completions can be read: what a judge needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bgrpo.errors import UserError
from bgrpo.groups import Group, fused
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bgrpo.decoding import DecodeEngine, DecodeSettings


def complete(
    engine: DecodeEngine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: DecodeSettings,
    seeds: Sequence[int] | None = None,
) -> list[Group]:
    """Decode one group per problem, with the text of every completion.

    Args:
        engine: holds the policy.
        tokenizer: of the policy.
        problems: whose prompts are completed, and have been encoded before.
        settings: how.
        seeds: one per problem, for samples.

    Raises:
        UserError: a prompt that the vocabulary lacks, or that is too long; see :meth:`DecodeEngine.decode`.
    """
    prompts = encode_prompts(tokenizer, problems, "prompt", tried=True)
    return [with_texts(group, tokenizer) for group in engine.decode(prompts, settings, seeds)]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], where: str, first: int = 0, *, tried: bool = False
) -> list[list[int]]:
    """Token ids of the problems' prompts: of texts as they stand, of chats as the policy's chat template renders them,
    of passages one behind the other, see :func:`bgrpo.groups.fused`.

    A problem with ``prompt_tokens`` has its prompt cut to these, see :func:`bgrpo.policies.text.cut_left`.

    Args:
        tokenizer: of the policy.
        problems: any number.
        where: they came from, for the message: their file, if there is one.
        first: position of the first of them among all that are there, for the message.
        tried: they have been encoded before, so the chat template is known to end: see
            :func:`bgrpo.policies.text.encode_chats`.

    Raises:
        UserError: a prompt that the vocabulary lacks, or that the chat template refuses or does not end on, with its
            line; or passages for a policy without an encoder.
    """
    from bgrpo.policies.text import UnreadableText, cut_left, encode_chats, encode_texts

    chats = [i for i, problem in enumerate(problems) if problem.messages]
    texts = [i for i, problem in enumerate(problems) if not problem.messages and not problem.passages]
    of_passages = [i for i, problem in enumerate(problems) if problem.passages]
    found: list[list[int]] = [[]] * len(problems)
    for part in (texts, chats):
        try:
            if part is chats:
                encoded = encode_chats(tokenizer, [problems[i].messages for i in part], tried=tried)
            else:
                encoded = encode_texts(tokenizer, [problems[i].prompt for i in part])
        except UnreadableText as error:
            raise UserError(f"{place(where, problems, part[error.index], first)}: {error}") from error
        for i, ids in zip(part, encoded, strict=True):
            found[i] = cut_left(tokenizer, ids, problems[i].prompt_tokens) if problems[i].prompt_tokens else ids
    for i in of_passages:
        found[i] = _of_passages(tokenizer, problems[i], place(where, problems, i, first))
    return found


def _of_passages(tokenizer: PreTrainedTokenizerBase, problem: Problem, named: str) -> list[int]:
    from bgrpo.policies.text import UnreadableText, cut_left, encode_texts, has_encoder

    if not has_encoder(tokenizer):
        raise UserError(f"{named}: has passages, which an encoder reads: the policy has none; give it one prompt")
    try:
        encoded = encode_texts(tokenizer, problem.passages)
    except UnreadableText as error:
        raise UserError(f"{named}: passage {error.index + 1}: {error}") from error
    most = problem.prompt_tokens
    return fused(cut_left(tokenizer, ids, most) if most else ids for ids in encoded)


def place(where: str, problems: Sequence[Problem], index: int, first: int = 0) -> str:
    """How a message calls one of the problems: by its line in the file ``where``, or by its number."""
    line = problems[index].line
    return f"{where}:{line}" if line else f"{where}: problem {first + index + 1}"


def with_texts(group: Group, tokenizer: PreTrainedTokenizerBase) -> Group:
    """The group with the text of its completions."""
    from bgrpo.policies.text import decode_completion

    completions = [
        replace(completion, text=decode_completion(tokenizer, completion.tokens)) for completion in group.completions
    ]
    return replace(group, completions=completions)
