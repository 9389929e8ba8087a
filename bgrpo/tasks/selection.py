"""Which problems of data files to keep: by what their task tells of them, length, category, own answer, other files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError
from bgrpo.settings.spelling import nearest
from bgrpo.tasks.base import Outcome, Problem, Record, Task, outcome_of
from bgrpo.tasks.data_streams import key_of, quantities_of, stream

_BOUNDS = re.compile(r"(\d{1,18})?(-)?(\d{1,18})?")
WORDS = ("prompt_words", "answer_words")
NO_ANSWER = "none"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: float

    @classmethod
    def parse(cls, option: str, text: Any) -> Bounds:
        """``4``, ``2-4``, ``2-`` or ``-4``.

        Raises:
            UserError: something else.
        """
        found = _BOUNDS.fullmatch(str(text).strip())
        low, dash, high = found.groups() if found else (None, None, None)
        if low is None and high is None:
            raise UserError(f"{option} {text}: expected a whole number or a range: 4, 2-4, 2- or -4")
        bounds = cls(int(low or 0), int(high) if high else float("inf") if dash else int(low or 0))
        if bounds.low > bounds.high:
            raise UserError(f"{option} {text}: no number is in this range: the larger stands first")
        return bounds

    def __contains__(self, number: int) -> bool:
        return self.low <= number <= self.high


@dataclass(slots=True)
class Selection:
    """What a problem must be to stay.

    Attributes:
        task: whose problems.
        quantities: of the task, and the words of prompt and answer -> ranges, one of which must hold the number.
        categories: one of them, where there are any.
        outcomes: of the own answer, one of them, where there are any; :data:`NO_ANSWER` for no answer.
        exclude: keys of problems that do not stay.
        distinct: of several with the same key the first stays.
    """

    task: Task
    quantities: Mapping[str, list[Bounds]] = field(default_factory=dict)
    categories: Collection[str] = ()
    outcomes: Collection[str] = ()
    exclude: set[int] = field(default_factory=set)
    distinct: bool = False

    def tests(self) -> list[tuple[str, Callable[[Problem], bool]]]:
        """What is tested, in this order, with a name for those that fail it; cheap tests come first."""
        found: list[tuple[str, Callable[[Problem], bool]]] = []
        _, quantify = quantities_of(self.task)
        for name, ranges in self.quantities.items():
            found.append((name, _within(name, ranges, quantify)))
        if self.categories:
            found.append(("category", lambda problem: problem.category in self.categories))
        if self.exclude or self.distinct:
            key, seen = key_of(self.task), self.exclude

            def is_new(problem: Problem) -> bool:
                number = key(problem)
                known = number in seen
                if self.distinct:
                    seen.add(number)
                return not known

            found.append(("repeated" if self.distinct else "excluded", is_new))
        if self.outcomes:
            found.append(("outcome", lambda problem: own_outcome(self.task, problem) in self.outcomes))
        return found


def own_outcome(task: Task, problem: Problem) -> str:
    """Outcome of a problem's own answer, or :data:`NO_ANSWER`."""
    return str(outcome_of(task, problem, problem.answer)) if problem.answer else NO_ANSWER


def quantity_bounds(task: Task, options: Mapping[str, Any]) -> dict[str, list[Bounds]]:
    """Ranges of the task's quantities, from a command line's ``--NAME RANGE``.

    Raises:
        UserError: the task has no such quantity, with the one that was probably meant; or no range.
    """
    known, _ = quantities_of(task)
    for name in options:
        if name not in known:
            meant = nearest(name, [*known, *WORDS])
            has = f"has {', '.join(f'--{each}' for each in known)}" if known else "has no quantities to select by"
            hint = f"; did you mean --{meant.replace('_', '-')}?" if meant else f": task {task.name!r} {has}"
            raise UserError(f"No such option: --{name.replace('_', '-')}{hint}")
    return {name: bounds_of(f"--{name}", value) for name, value in options.items()}


def bounds_of(option: str, value: Any) -> list[Bounds]:
    """One or several ranges, see :meth:`Bounds.parse`."""
    return [Bounds.parse(option, each) for each in (value if isinstance(value, list) else [value])]


def checked_outcomes(names: Iterable[str]) -> list[str]:
    """Raises UserError where one is no outcome."""
    known = [*map(str, Outcome), NO_ANSWER]
    for name in names:
        if name not in known:
            raise UserError(f"--outcome {name}: expected one of {', '.join(known)}")
    return list(names)


def keys_in(task: Task, paths: Iterable[Path]) -> set[int]:
    """Keys of all problems of some files."""
    key = key_of(task)
    return {key(record.problem) for path in paths for record in stream(task, path)}


Tests = list[tuple[str, Callable[[Problem], bool]]]


def kept(records: Iterable[Record], tests: Tests, count: Callable[[str], None]) -> Iterator[Record]:
    """The records that stay; of each other one, ``count`` is called with the name of the first test that it fails.

    Args:
        records: of the files.
        tests: of :meth:`Selection.tests`.
        count: counts.
    """
    for record in records:
        failed = next((name for name, holds in tests if not holds(record.problem)), None)
        if failed is None:
            yield record
        else:
            count(failed)


def _within(
    name: str, ranges: list[Bounds], quantify: Callable[[Problem], dict[str, int]]
) -> Callable[[Problem], bool]:
    def holds(problem: Problem) -> bool:
        if name in WORDS:
            text = problem.prompt if name == WORDS[0] else problem.answer
            number: int | None = len(text.split())
        else:
            number = quantify(problem).get(name)
        return number is not None and any(number in bounds for bounds in ranges)

    return holds
