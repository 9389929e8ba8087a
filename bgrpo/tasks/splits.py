"""Disjoint training, validation and test problems of a task."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bgrpo.config import ProblemSource, TaskSection
from bgrpo.config.problems import GENERATED
from bgrpo.errors import UserError
from bgrpo.tasks.base import Problem, Progress, Task, can_generate, generate_problems, load_file

DEFAULT_SHARE = 0.05  # of the training file, for each of validation and test, where a task cannot generate them


@dataclass(frozen=True, slots=True)
class Splits:
    """Problems no two of which share a prompt across the three lists."""

    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    notes: list[str] = field(default_factory=list, compare=False)  # where a file holds more than are used


def load_splits(task: Task, section: TaskSection, progress: Progress | None = None, needs_test: bool = True) -> Splits:
    """Read, generate or hold out all three splits.

    Test problems come first, validation leaves those out, training leaves out both: so the test split of a
    configuration does not depend on the others, and nothing is trained on that is measured on.

    Args:
        task: whose problems.
        section: says where they come from.
        progress: called while large files are read.
        needs_test: False where nobody measures on the test split and it only keeps its problems out of training: one
            that the configuration does not ask for may then be empty, where a file has too few prompts for it.

    Raises:
        UserError: a bad file, or a split with no problem left.
    """
    sources = _Sources(task, section, progress)
    shares = _shares(task, section)
    train = sources.load("train", ()) if shares else []
    held: dict[str, list[Problem]] = {}
    for name in ("test", "validation"):
        seen = {problem.prompt for problem in held.get("test", ())}
        if name in shares:
            source: ProblemSource = getattr(section, name)
            optional = name == "test" and not needs_test and source.share is None
            try:
                if optional and len(set(_kept_together(train, section.split_by))) <= len(shares):
                    held[name] = []
                    continue
                found, train = hold_out(train, shares[name], source.seed, section.split_by)
            except UserError as error:
                raise UserError(f"task.{name}: {section.train.file}: {error}") from error
            held[name] = sources.cut(name, found, seen)
        else:
            held[name] = sources.cut(name, sources.load(name, seen), seen)
    seen = {problem.prompt for split in held.values() for problem in split}
    train = sources.cut("train", train if shares else sources.load("train", seen), seen)
    return Splits(train, held["validation"], held["test"], sources.notes)


def load_test(task: Task, section: TaskSection) -> tuple[list[Problem], list[str]]:
    """The test split alone, and notes on it, as :func:`load_splits` makes them."""
    if "test" in _shares(task, section):
        splits = load_splits(task, section)
        return splits.test, splits.notes
    sources = _Sources(task, section, None)
    return sources.cut("test", sources.load("test", ()), ()), sources.notes


def place_of_split(task: Task, section: TaskSection, name: str) -> str:
    """How messages call where a split's problems come from: the split, and the file."""
    source: ProblemSource = getattr(section, name)
    held_out = source.file is None and (source.share is not None or not can_generate(task))
    file = section.train.file if held_out else source.file
    return f"task.{name}" if file is None else f"task.{name}: {file}"


def hold_out(
    problems: Sequence[Problem], share: float, seed: int, by: str | None = None
) -> tuple[list[Problem], list[Problem]]:
    """Part of the problems, and the rest, both in their order.

    Problems with the same prompt, or the same value of column ``by``, stay together. Which are taken depends on the
    seed and on these values, not on the order.

    Args:
        problems: at least two different values.
        share: how much to take, at least one value and never all.
        seed: of the choice.
        by: column, or None for the prompt.

    Raises:
        UserError: a problem has no such column, or all have one value.
    """
    keys = _kept_together(problems, by)
    sizes = Counter(keys)
    order = sorted(
        sizes, key=lambda key: hashlib.blake2b(f"{seed}\0{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    )
    if len(order) < 2:
        what = "prompt" if by is None else f"value of column {by!r}"
        raise UserError(f"nothing can be held out of {len(problems)} problems with one {what}: give more, or a file")
    taken: set[str] = set()
    count = 0
    for key in order[:-1]:
        if taken and count + sizes[key] / 2 > share * len(problems):
            break
        taken.add(key)
        count += sizes[key]
    found = [problem for problem, key in zip(problems, keys, strict=True) if key in taken]
    return found, [problem for problem, key in zip(problems, keys, strict=True) if key not in taken]


def _kept_together(problems: Sequence[Problem], by: str | None) -> list[str]:
    """A key for each problem: those with equal ones are on one side.

    Raises:
        UserError: a problem has no column ``by``.
    """
    return [problem.prompt if by is None else _value(problem, by) for problem in problems]


def _value(problem: Problem, column: str) -> str:
    if column == "category" and column not in problem.fields:
        return problem.category
    if column not in problem.fields:
        there = ", ".join(map(repr, problem.fields)) or "no further column"
        raise UserError(
            f"task.split_by={column}: the problem {problem.prompt[:40]!r} has no such column; it has {there}"
        )
    return json.dumps(problem.fields[column], sort_keys=True)


def _shares(task: Task, section: TaskSection) -> dict[str, float]:
    """Splits that are held out of the training file, and how much of it."""
    shares: dict[str, float] = {}
    for name in ("validation", "test"):
        source: ProblemSource = getattr(section, name)
        if source.file is None and (source.share is not None or not can_generate(task)):
            shares[name] = source.share or DEFAULT_SHARE
        elif source.share is not None:
            raise UserError(f"task.{name}: has both a file and share={source.share:g}: give one of them")
    if section.train.share is not None:
        raise UserError("task.train.share: training gets what the other splits leave; give task.validation.share")
    if sum(shares.values()) >= 1:
        raise UserError(
            f"task.validation.share + task.test.share = {sum(shares.values()):g}: leaves no problem to train on"
        )
    if shares and section.train.file is None:
        raise UserError(
            f"task.train.file is not set: task {task.name!r} "
            + ("cannot generate problems" if not can_generate(task) else "holds out shares of a file")
        )
    if section.split_by is not None and not shares:
        raise UserError(f"task.split_by={section.split_by}: nothing is split; it goes with task.validation.share")
    return shares


class _Sources:
    """Reads and generates the splits of a section.

    Attributes:
        notes: where a file holds more problems than are used.
    """

    def __init__(self, task: Task, section: TaskSection, progress: Progress | None) -> None:
        self._task, self._section, self._progress = task, section, progress
        self.notes: list[str] = []

    def load(self, name: str, exclude: Collection[str]) -> list[Problem]:
        """All problems of a split's own source; generated ones have no prompt in ``exclude``."""
        source: ProblemSource = getattr(self._section, name)
        if source.file is None:
            count = GENERATED if source.count is None else source.count
            return generate_problems(self._task, source.options, count, source.seed, sorted(exclude))
        return load_file(
            self._task,
            Path(source.file),
            for_training=name == "train",
            allow_bad=self._section.allow_bad_lines,
            progress=self._progress,
        ).problems

    def cut(self, name: str, problems: list[Problem], exclude: Collection[str]) -> list[Problem]:
        """Those that no other split has, at most as many as asked for."""
        source: ProblemSource = getattr(self._section, name)
        usable = [problem for problem in problems if problem.prompt not in exclude]
        left = usable[: source.count]
        if len(left) < len(usable):
            self.notes.append(
                f"note: {place_of_split(self._task, self._section, name)} has {len(usable):,} problems, "
                f"{len(left):,} of them are used: task.{name}.count={source.count}"
            )
        if not left:
            where = "" if source.file is None else f".file={source.file}"
            raise UserError(
                f"task.{name}{where}: no problem left for {name}: all {len(problems)} usable ones "
                f"are also held out (validation and test); give another file"
            )
        return left
