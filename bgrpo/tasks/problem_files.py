"""Problems as JSON lines: what a run folder keeps, so that a resumed run sees exactly the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from bgrpo.errors import UserError, brief
from bgrpo.tasks.base import Problem


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write one JSON object per problem.

    Raises:
        UserError: the file cannot be written.
    """
    names = [field.name for field in dataclasses.fields(Problem)]
    values = map(attrgetter(*names), problems)
    lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in values)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): free some space") from error


def read_problems(path: Path) -> list[Problem]:
    """What :func:`write_problems` wrote.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            problems = [Problem(**json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the run's problems cannot be read: {brief(error)}") from error
    if not all(isinstance(problem.prompt, str) for problem in problems):
        raise UserError(f"{path}: the run's problems cannot be read: a prompt that is no text")
    return problems


def count_problems(path: Path) -> int:
    """How many problems :func:`write_problems` wrote; their lines are not read as problems.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise UserError(f"{path}: the run's problems cannot be read: {error}") from error
