"""Checkpoints that are complete or absent: written beside, marked, synced to disk, then renamed into place."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bgrpo.errors import UserError
from bgrpo.files import UNFINISHED, atomic_path

MARKER = "COMPLETE.json"
_NAME = re.compile(r"step-(\d{8,})")

logger = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one run in one folder, ``step-00000050`` and so on.

    One process writes (rank 0); any process that sees the folder may read. A checkpoint counts only when its marker
    :data:`MARKER` is there and lists every file with its size, so a process killed at any moment leaves either the
    whole checkpoint or none.

    Args:
        directory: the folder; made on the first save.
        keep: newest checkpoints to keep, at least 1; the best one by the metric given to :meth:`save` is kept besides.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep={keep}: at least one checkpoint must be kept")
        self.directory = directory
        self.keep = keep

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        metrics: dict[str, float] | None = None,
        best_key: str | None = None,
    ) -> Path:
        """Write one checkpoint, then delete those that are no longer to be kept.

        Args:
            step: training step, names the checkpoint. A complete one of the same step is replaced.
            write: fills the (existing, empty) folder it is given.
            metrics: stored with the checkpoint; read back by :meth:`metrics` and :meth:`best`.
            best_key: metric (higher is better) whose best checkpoint is never deleted.

        Raises:
            UserError: the disk is full or the folder cannot be written; older checkpoints are as they were.
        """
        final = self.directory / f"step-{step:08d}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            with atomic_path(final) as new:
                new.mkdir()
                write(new)
                _mark_complete(new, step, metrics or {})
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{final}: checkpoint of step {step} could not be written ({_reason(error)}); older checkpoints are "
                f"untouched: free some space, or set run.dir to a folder that can be written, then resume"
            ) from error
        self._prune(best_key)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint; incomplete ones are skipped with a warning."""
        return next(iter(self._complete(warn=True)), None)

    def best(self, key: str) -> Path | None:
        """The complete checkpoint with the highest finite ``key``, the newest of equals; None when none has it."""
        return self._best(self._complete(), key)

    def metrics(self, path: Path) -> dict[str, float]:
        """What :meth:`save` was given for this checkpoint."""
        return {str(name): float(value) for name, value in _read_marker(path)["metrics"].items()}

    @staticmethod
    def is_complete(path: Path) -> bool:
        """True when the marker is readable and every file that it lists is there with its size."""
        try:
            files = _read_marker(path)["files"]
            return all((path / name).stat().st_size == size for name, size in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    @staticmethod
    def step_of(path: Path) -> int:
        """The training step that a checkpoint folder's name carries."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(f"{path}: not a checkpoint folder; expected a name like step-00000050")
        return int(match[1])

    def _complete(self, warn: bool = False) -> list[Path]:
        """Complete checkpoints, newest first."""
        if not self.directory.is_dir():
            return []
        paths = sorted(
            (path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)), key=self.step_of, reverse=True
        )
        complete = [path for path in paths if self.is_complete(path)]
        if warn:
            for path in sorted(set(paths) - set(complete)):
                logger.warning("%s: incomplete checkpoint (marker or files missing), skipped", path)
        return complete

    def _best(self, newest_first: list[Path], key: str) -> Path | None:
        scored = [(self.metrics(path).get(key, math.nan), path) for path in newest_first]
        finite = [(value, path) for value, path in scored if math.isfinite(value)]
        return max(finite, key=lambda pair: pair[0])[1] if finite else None

    def _prune(self, best_key: str | None) -> None:
        complete = self._complete()
        best = self._best(complete, best_key) if best_key is not None else None
        for path in complete[self.keep :]:
            if path != best:
                _discard(path)

    def _remove_leftovers(self) -> None:
        """Folders that a killed writer left; there is one writer, so nobody is still filling them."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def _read_marker(path: Path) -> dict[str, Any]:
    return json.loads((path / MARKER).read_text("utf-8"))


def _mark_complete(folder: Path, step: int, metrics: dict[str, float]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    marker = {
        "step": step,
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
        "metrics": metrics,
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=1), "utf-8")


def _discard(path: Path) -> None:
    """Delete a checkpoint, marker first, so that an interrupted deletion never looks complete."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
