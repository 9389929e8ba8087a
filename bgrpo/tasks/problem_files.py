"""Problems as JSON lines: what a run folder keeps, so that a resumed run sees exactly the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError
from bgrpo.tasks.base import Message, Problem


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write one JSON object per problem.

    Raises:
        UserError: the file cannot be written.
    """
    lines = (json.dumps(dataclasses.asdict(problem), ensure_ascii=False) + "\n" for problem in problems)
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
            return [_problem(**json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: the run's problems cannot be read: {error}") from error


def _problem(messages: list[Message] = [], alternatives: list[str] = [], **rest: Any) -> Problem:  # noqa: B006
    return Problem(messages=tuple(messages), alternatives=tuple(alternatives), **rest)
