"""The lines of a run's ``metrics.jsonl``, whatever they hold: a crash cuts a line off, a disk may damage one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError, brief
from bgrpo.files import read_file, unseal
from bgrpo.scoring.failed_checks import DETAILS

LARGEST = 1e18
"""No step, amount, time or loss is larger."""


def parse_step(line: str | bytes) -> dict[str, Any] | None:
    """One step's metrics; None for a damaged line.

    Each is a finite number or null, but for :data:`bgrpo.scoring.failed_checks.DETAILS`, which holds texts; ``step`` is
    a whole number above 0. Where the line has a checksum, see :func:`bgrpo.files.seal`, it must be right.
    """
    try:
        record = json.loads(unseal(line))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(map(_fits, record, record.values())):
        return None
    step = record.get("step")
    if step is None or step < 1 or step != int(step):
        return None
    return record | {"step": int(step)}


def read_steps_of(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The steps of a metrics file in the order of its lines, and how many lines are damaged.

    Of several lines of one step the last counts. No steps where there is no file. A last line without line feed is
    still being written, or was cut off: left out.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = read_file(path).split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {brief(error)}") from error
    parsed = [parse_step(line) for line in lines]
    return list({step["step"]: step for step in parsed if step is not None}.values()), parsed.count(None)


def _fits(name: str, value: Any) -> bool:
    if name == DETAILS:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
