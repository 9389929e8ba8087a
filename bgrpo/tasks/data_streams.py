"""Data files of any task, one problem after another, and what can be told of each problem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError
from bgrpo.files import is_file, readable_file
from bgrpo.tasks.base import Problem, Record, Task, ability, load_file, read_records

_MOST_BYTES = 1 << 34


def stream(task: Task, path: Path) -> Iterator[Record]:
    """The problems of a data file, in order; memory does not grow with the file where the task has ``records``.

    Raises:
        UserError: the file cannot be read, or the task fails.
    """
    return read_records(task, path) if callable(getattr(task, "records", None)) else _copied(task, path)


def _copied(task: Task, path: Path) -> Iterator[Record]:
    """Of a task that only loads whole files: the lines that its problems name."""
    problems = {problem.line: problem for problem in load_file(task, path).problems}
    if not is_file(path) or 0 in problems:
        raise UserError(
            f"task {task.name!r} has no method records(), and its problems do not name their lines: lines cannot be "
            f"copied from {path}"
        )
    try:
        with readable_file(path, _MOST_BYTES).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if number in problems:
                    yield Record(line.rstrip("\r\n"), problems[number])
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def quantities_of(task: Task) -> tuple[dict[str, str], Callable[[Problem], dict[str, int]]]:
    """The whole numbers that the task's problems have, each with a line of help, and what gives those of a problem."""
    if not callable(getattr(task, "quantities", None)):
        return {}, lambda problem: {}
    listed = ability(task, "quantities", "this command")()
    if not isinstance(listed, dict) or not all(isinstance(text, str) for pair in listed.items() for text in pair):
        raise UserError(f"task {task.name!r}: quantities() returned {listed!r}, expected names with a line of help")
    quantify = ability(task, "quantify", "this command")

    def found(problem: Problem) -> dict[str, int]:
        values = quantify(problem)
        if not isinstance(values, dict) or not all(type(value) is int for value in values.values()):
            raise UserError(f"task {task.name!r}: quantify() returned {values!r}, expected names with whole numbers")
        return values

    return listed, found


def grid_of(task: Task) -> tuple[str, str] | None:
    """The two quantities that are rows and columns of heat maps, or None."""
    if not callable(getattr(task, "grid", None)):
        return None
    axes = ability(task, "grid", "this command")()
    names, _ = quantities_of(task)
    if not isinstance(axes, Sequence) or len(axes) != 2 or not set(axes) <= set(names):
        raise UserError(f"task {task.name!r}: grid() returned {axes!r}, expected two of {', '.join(names)}")
    return axes[0], axes[1]


def key_of(task: Task) -> Callable[[Problem], int]:
    """A number of 64 bits for a problem, the same for the same problem; two of a million collide with chance 3e-8."""
    given: Callable[[Problem], Any] = lambda problem: " ".join(problem.prompt.split())  # noqa: E731
    if callable(getattr(task, "problem_key", None)):
        given = ability(task, "problem_key", "this command")

    def key(problem: Problem) -> int:
        text = given(problem)
        if not isinstance(text, str):
            raise UserError(f"task {task.name!r}: problem_key() returned a {type(text).__name__}, expected text")
        return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())

    return key
