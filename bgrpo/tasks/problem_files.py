"""Problems as JSON lines: what a run folder keeps, so that a resumed run sees exactly the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from bgrpo.errors import UserError, reading
from bgrpo.files import readable_file
from bgrpo.tasks.base import Problem

_MOST_BYTES = 1 << 34
TUPLES = ("messages", "alternatives", "passages")
"""Fields of a problem that JSON holds as lists."""

_TYPES = {
    "prompt": str,
    "answer": str,
    "category": str,
    "messages": list,
    "alternatives": list,
    "passages": list,
    "answer_prefix": str,
    "fields": dict,
    "prompt_tokens": int,
    "line": int,
}


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
    with reading(f"{path}: the run's problems cannot be read"), readable_file(path, _MOST_BYTES).open("rb") as file:
        problems = []
        for number, line in enumerate(file, start=1):
            found = json.loads(line)
            if not isinstance(found, dict) or any(type(value) is not _TYPES.get(key) for key, value in found.items()):
                raise UserError(f"{path}: the run's problems cannot be read: line {number} is not a problem")
            found |= {name: tuple(found[name]) for name in TUPLES if name in found}
            problems.append(Problem(**found))
        return problems
