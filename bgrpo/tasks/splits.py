"""Disjoint training, validation and test problems of a task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from bgrpo.config import ProblemSource, TaskSection
from bgrpo.errors import UserError
from bgrpo.tasks.base import Problem, Progress, Task, generate_problems, load_file


@dataclass(frozen=True, slots=True)
class Splits:
    """Problems no two of which share a prompt across the three lists."""

    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    notes: list[str] = field(default_factory=list, compare=False)  # where a file holds more or fewer than asked for


def load_splits(task: Task, section: TaskSection, progress: Progress | None = None) -> Splits:
    """Read or generate all three splits.

    Test problems come first, validation leaves those out, training leaves out both: so the test split of a
    configuration does not depend on the others, and nothing is trained on that is measured on.

    Args:
        task: whose problems.
        section: says where they come from.
        progress: called while large files are read.

    Raises:
        UserError: a bad file, or a split with no problem left.
    """
    notes: list[str] = []
    test = _load_split(task, section, "test", (), progress, notes)
    validation = _load_split(task, section, "validation", {problem.prompt for problem in test}, progress, notes)
    held_out = {problem.prompt for problem in [*validation, *test]}
    return Splits(_load_split(task, section, "train", held_out, progress, notes), validation, test, notes)


def _load_split(
    task: Task,
    section: TaskSection,
    name: str,
    exclude: Collection[str],
    progress: Progress | None,
    notes: list[str],
) -> list[Problem]:
    source: ProblemSource = getattr(section, name)
    if source.file is None:
        return generate_problems(task, source.options, source.count, source.seed, sorted(exclude))
    training = name == "train"
    loaded = load_file(
        task, Path(source.file), for_training=training, allow_bad=section.allow_bad_lines, progress=progress
    )
    usable = [problem for problem in loaded.problems if problem.prompt not in exclude]
    problems = usable[: source.count]
    if len(usable) != source.count:
        notes.append(
            f"note: task.{name}.file={source.file} has {len(usable):,} problems, {len(problems):,} of them are used: "
            f"task.{name}.count={source.count}"
        )
    if not problems:
        raise UserError(
            f"task.{name}.file={source.file}: no problem left for {name}: all {len(loaded.problems)} usable ones "
            f"are also held out (validation and test); give another file"
        )
    return problems
