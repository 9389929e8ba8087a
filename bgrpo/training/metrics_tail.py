"""Following a run's ``metrics.jsonl`` while a learner writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bgrpo.errors import UserError, brief
from bgrpo.files import open_file
from bgrpo.runs.metrics_lines import parse_step
from bgrpo.scoring.failed_checks import DETAILS


class WrittenStep(NamedTuple):
    """One step of a metrics file: its metrics, and what failed in its checks, by outcome."""

    step: int
    metrics: dict[str, float]
    details: dict[str, str]


class MetricsTail:
    """New steps of a metrics file, each once.

    A learner that resumes from a checkpoint cuts the file back and writes some steps again; those are passed over, as
    are damaged lines.

    Args:
        path: of the file; need not exist yet.
        last_step: steps up to this one are known.
    """

    def __init__(self, path: Path, last_step: int = 0) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self.last_step = last_step

    def new_steps(self) -> Iterator[WrittenStep]:
        """Steps written since the last call; a line still being written waits for the next call.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open_file(self._path) as file:
                self._rewind_if_rewritten(file.fileno())
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {brief(error)}") from error
        whole = written[: written.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            record = parse_step(line)
            if record is None:  # damaged
                continue
            step, details = record.pop("step"), record.pop(DETAILS, {})
            if step > self.last_step:
                self.last_step = step
                metrics = {name: value for name, value in record.items() if value is not None and name != "time"}
                yield WrittenStep(step, metrics, details)

    def _rewind_if_rewritten(self, handle: int) -> None:
        info = os.fstat(handle)
        if info.st_ino != self._inode or info.st_size < self._offset:
            self._inode, self._offset = info.st_ino, 0
