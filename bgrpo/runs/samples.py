"""What the policy wrote: some groups of every training step, kept in ``RUN/samples/`` as JSON lines.

Which groups, and what is kept of them, depends on the step's groups alone, so a run that was resumed keeps what an
undisturbed one keeps. Every line is bounded, whatever the policy writes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bgrpo.errors import UserError
from bgrpo.files import open_to_append, seal, unseal, write_atomically
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS_PER_FILE = 100
MAX_COMPLETIONS = 64  # of one group, the first ones: of beams, the best
MAX_TOKENS = 4096  # of one group, shared out alike among its completions
MAX_CHARACTERS = 16_384  # likewise; and of a prompt and an answer
MAX_PASSAGES = 100
MAX_PIECE = 64
MAX_DETAIL = 500
MAX_PARTS = 50
MAX_ROWS = 1000  # of a table for a tracker
MAX_LINE = 4 * 2**20  # bytes; more than any group that is written

_FILE = re.compile(r"steps-(\d{8,12})-(\d{8,12})\.jsonl")

Number = float | None
"""None where the value was not finite, or there is none."""


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class SampledCompletion(_Record):
    """One completion.

    Attributes:
        rank: 1-based position in its group.
        text: what the judge read; shortened texts end with ``…``.
        length: tokens that the policy wrote.
        tokens: ids of the first of them; ``pieces`` and ``logprobs`` belong to these.
        pieces: text of each token.
        logprobs: natural-log probability of each token.
        logprob: summed over all tokens.
        finished: the last token is an end token.
        outcome: of the verdict, as are detail, score and parts.
        detail: what happened, where the check failed.
        score: the reward function's value.
        parts: name -> value of each part of the reward.
        reward: what the completion earned.
        advantage: what the update used; None when the group was left out of it.
    """

    rank: Annotated[int, Field(ge=1)]
    text: str
    length: Annotated[int, Field(ge=0)]
    tokens: Annotated[list[int], Field(max_length=MAX_TOKENS)]
    pieces: Annotated[list[str], Field(max_length=MAX_TOKENS)]
    logprobs: Annotated[list[Number], Field(max_length=MAX_TOKENS)]
    logprob: Number
    finished: bool
    outcome: str
    detail: str = ""
    score: Number = None
    parts: dict[str, Number] = {}
    reward: Number
    advantage: Number


class SampledGroup(_Record):
    """One group of one step: a line of a file.

    Attributes:
        step: training step, from 1.
        group: position among the groups of the step.
        problem: position in the training problems.
        version: of the policy that decoded it.
        prompt: of the problem, as are answer, category and passages.
        size: completions of the group; ``completions`` are the first of them.
    """

    step: Annotated[int, Field(ge=1, lt=10**12)]
    group: Annotated[int, Field(ge=0)]
    problem: Annotated[int, Field(ge=0)]
    version: int
    prompt: str
    answer: str = ""
    category: str = ""
    passages: Annotated[list[str], Field(max_length=MAX_PASSAGES)] = []
    size: Annotated[int, Field(ge=1)]
    completions: Annotated[list[SampledCompletion], Field(min_length=1, max_length=MAX_COMPLETIONS)]


class SampleWriter:
    """Keeps the first groups of every step. One process writes: learner 0.

    Args:
        run: whose folder they go to.
        problems: the training problems.
        tokenizer: of the policy.
        groups: how many of each step; 0 keeps none.
    """

    def __init__(
        self, run: RunFolder, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, groups: int
    ) -> None:
        self._run = run
        self._problems = problems
        self._tokenizer = tokenizer
        self._groups = groups
        self._pieces: dict[int, str] = {}

    def write(
        self, step: int, groups: Sequence[ScoredGroup], advantages: Mapping[int, Sequence[float]] | None = None
    ) -> None:
        """Add the first groups of a step.

        Args:
            step: from 1.
            groups: of the step, in the order in which they were drawn.
            advantages: by position in ``groups``; of those that the update uses.

        Raises:
            LostRunError: the folder is not this run's any more.
            UserError: the file cannot be written.
        """
        records = [
            self._record(step, position, group, (advantages or {}).get(position))
            for position, group in enumerate(groups[: self._groups])
        ]
        if not records:
            return
        self._run.check_owner()
        first = (step - 1) // STEPS_PER_FILE * STEPS_PER_FILE + 1
        path = self._run.samples / f"steps-{first:08d}-{first + STEPS_PER_FILE - 1:08d}.jsonl"
        try:
            self._run.samples.mkdir(exist_ok=True)
            with open_to_append(path) as file:
                file.write("".join(f"{seal(record.model_dump_json())}\n" for record in records))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}): free some space, or move away what is there"
            ) from error

    def truncate_after(self, step: int) -> None:
        """Forget later steps than ``step``, and what a crash cut off: a resumed run makes them again."""
        self._run.check_owner()
        for first, last, path in _files(self._run.samples):
            if first > step:
                path.unlink()
            elif last >= step:
                kept = [record for record in _records(path) if record is not None and record.step <= step]
                write_atomically(path, "".join(f"{seal(record.model_dump_json())}\n" for record in kept))

    def _record(self, step: int, position: int, group: ScoredGroup, advantages: Sequence[float] | None) -> SampledGroup:
        problem = self._problems[group.index]
        kept = group.completions[:MAX_COMPLETIONS]
        return SampledGroup.model_construct(
            step=step,
            group=position,
            problem=group.index,
            version=group.version,
            prompt=_shorten(problem.prompt, MAX_CHARACTERS),
            answer=_shorten(problem.answer, MAX_CHARACTERS),
            category=_shorten(problem.category, MAX_DETAIL),
            passages=[
                _shorten(text, MAX_CHARACTERS // len(problem.passages)) for text in problem.passages[:MAX_PASSAGES]
            ],
            size=len(group.completions),
            completions=[
                self._completion(rank, completion, len(kept), group.rewards[rank - 1], advantages)
                for rank, completion in enumerate(kept, start=1)
            ],
        )

    def _completion(
        self, rank: int, completion: Completion, of: int, reward: float | None, advantages: Sequence[float] | None
    ) -> SampledCompletion:
        verdict = completion.judged
        tokens = completion.tokens[: MAX_TOKENS // of]
        return SampledCompletion.model_construct(
            rank=rank,
            text=_shorten(completion.text, MAX_CHARACTERS // of),
            length=len(completion.tokens),
            tokens=tokens,
            pieces=[self._piece(token) for token in tokens],
            logprobs=[_finite(value, digits=5) for value in completion.logprobs[: len(tokens)]],
            logprob=_finite(completion.logprob, digits=5),
            finished=completion.finished,
            outcome=_shorten(str(verdict.outcome), MAX_PIECE),
            detail=_shorten(verdict.detail, MAX_DETAIL),
            score=_finite(verdict.score),
            parts={
                _shorten(name, MAX_PIECE): _finite(value) for name, value in islice(verdict.parts.items(), MAX_PARTS)
            },
            reward=_finite(reward),
            advantage=None if advantages is None else _finite(advantages[rank - 1]),
        )

    def _piece(self, token: int) -> str:
        """The text of one token, its leading blank included; half of a character is ``�``."""
        if token not in self._pieces:
            name = self._tokenizer.convert_ids_to_tokens(token)
            text = str(self._tokenizer.decode([token])) or str(name or f"<{token}>")
            if str(name).startswith(("▁", "Ġ")) and not text[:1].isspace():
                text = f" {text}"
            self._pieces[token] = _shorten(text, MAX_PIECE)
        return self._pieces[token]


class SampleReader:
    """The samples of a run, of whatever age and in whatever state.

    Args:
        run: its folder.

    Attributes:
        damaged: lines that were left out so far: damaged, or of another form.
    """

    def __init__(self, run: RunFolder) -> None:
        self._files = _files(run.samples)
        self.damaged = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for _, _, path in self._files)

    def __iter__(self) -> Iterator[SampledGroup]:
        """Every group, in the order of steps.

        Raises:
            UserError: a file cannot be read.
        """
        self.damaged = 0
        newest = 0
        for first, last, path in self._files:
            for record in _records(path):
                if record is None or not max(first, newest) <= record.step <= last:
                    self.damaged += 1
                    continue
                newest = record.step
                yield record


def sample_table(run: RunFolder, rows: int = MAX_ROWS) -> dict[str, list[Any]]:
    """Columns of a table with a row per completion, of evenly spread steps, at most ``rows`` of them."""
    reader = SampleReader(run)
    found = 0
    for group in reader:
        found += len(group.completions)
    every = max(1, math.ceil(found / rows))
    kept = [
        {
            "step": group.step,
            "problem": group.problem,
            "prompt": _shorten(group.prompt, MAX_DETAIL),
            "rank": completion.rank,
            "completion": _shorten(completion.text, MAX_DETAIL),
            "outcome": completion.outcome,
            "logprob": completion.logprob,
            "tokens": completion.length,
            "score": completion.score,
            "parts": json.dumps(completion.parts),
            "reward": completion.reward,
            "advantage": completion.advantage,
        }
        for group in (reader if found else ())
        if (group.step - 1) % every == 0
        for completion in group.completions
    ][:rows]
    return {name: [row[name] for row in kept] for name in (kept[0] if kept else ())}


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(first step, last step, path) of each file, in the order of steps."""
    named = [(match, path) for path in folder.glob("steps-*.jsonl") if (match := _FILE.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2]), path) for match, path in named if path.is_file())


def _records(path: Path) -> Iterator[SampledGroup | None]:
    """The lines of a file, None for a damaged one; a last line that a crash cut off is left out."""
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                if line.endswith(b"\n"):
                    yield _parse(line)
                elif len(line) == MAX_LINE:
                    yield None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(line: bytes) -> SampledGroup | None:
    try:
        return SampledGroup.model_validate_json(unseal(line))
    except ValueError:  # of pydantic too
        return None


def _shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters, all of which UTF-8 can hold."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return text.encode("utf-8", "replace").decode("utf-8")


def _finite(value: float | None, digits: int = 9) -> Number:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None
