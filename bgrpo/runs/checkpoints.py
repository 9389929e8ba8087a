"""Checkpoints that are complete or absent, and whose every byte is checked before a run goes on from one.

They are written beside, marked, synced to disk, then renamed into place. The marker lists each file with its size and
SHA-256, and its own digest, so whatever changed since is noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bgrpo.errors import UserError
from bgrpo.files import UNFINISHED, atomic_path, parse_object, read_file, sha256, write_atomically

MARKER = "COMPLETE.json"
_NAME = re.compile(r"step-(\d{8,})")
_READ = re.compile(
    r"([a-z][a-z0-9_-]*/)*[a-z][a-z0-9_-]*(\.safetensors\.index)?\.(json|jinja|safetensors|pt|pth|bin)", re.ASCII
)
"""Names that who reads a checkpoint or a policy looks for. Others, of desktops, editors and file systems, are read by
nobody."""

logger = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one run in one folder, ``step-00000050`` and so on.

    One process writes (rank 0); any process that sees the folder may read. A checkpoint counts only when its marker
    :data:`MARKER` is there and lists every file with its size, so a process killed at any moment leaves either the
    whole checkpoint or none. A run goes on from one whose files also have the marker's digests, see :meth:`latest`.

    Args:
        directory: the folder; made on the first save, in a folder that exists.
        keep: newest checkpoints to keep, at least 1; the best one by the metric given to :meth:`save` is kept besides.
        required: names of files without which a checkpoint is none.
        check_owner: called before anything is written or deleted; raises when another process owns the run.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        required: Sequence[str] = (),
        check_owner: Callable[[], None] = lambda: None,
    ) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep={keep}: at least one checkpoint must be kept")
        self.directory = directory
        self.keep = keep
        self._required = required
        self._check_owner = check_owner
        self._known: dict[tuple[Path, int], str] = {}  # what was found wrong with a checkpoint, by the marker's time

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
            LostRunError: the run has another owner, or its folder is gone.
        """
        self._check_owner()
        final = self._path(step)
        try:
            self.directory.mkdir(exist_ok=True)
            self._remove_leftovers()
            with atomic_path(final) as new:
                new.mkdir()
                write(new)
                _mark_complete(new, step, metrics or {})
                self._check_owner()  # writing takes a while
            write_atomically(self._record, json.dumps({"step": step}) + "\n")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{final}: checkpoint of step {step} could not be written ({_reason(error)}); older checkpoints are "
                f"untouched: free some space, or set run.dir to a folder that can be written, then resume"
            ) from error
        self._prune(step, best_key)
        return final

    def latest(self, tell: Callable[[str], None] = logger.warning) -> Path | None:
        """The newest checkpoint of which nothing is damaged; None before the first.

        Reads all of its files once, and again only when it was written anew.

        Args:
            tell: called with one line about each newer one that is damaged, and passed over.

        Raises:
            UserError: there are checkpoints, and all are damaged; or there were some, and all have gone.
        """
        saved = self._saved_step()
        damaged: list[str] = []
        for path in self._newest_first():
            reason = self._damage(path)
            if not reason:
                for line in damaged:
                    tell(f"{line}, passed over: going on from step {self.step_of(path)}")
                if saved > self.step_of(path) and not os.path.lexists(self._path(saved)):
                    tell(
                        f"{self._path(saved)}: the newest checkpoint has gone: going on from step {self.step_of(path)}"
                    )
                return path
            damaged.append(f"{path}: checkpoint of step {self.step_of(path)} is damaged ({reason})")
        if damaged:
            raise UserError(
                f"{'; '.join(damaged)}: none is left to go on from; put back what was there, or start a new run"
            )
        if saved:
            raise UserError(
                f"{self._path(saved)}: the run saved this checkpoint, and it has gone, as has every other: put it back,"
                f" or start a new run"
            )
        return None

    def newest_step(self) -> int:
        """Step of the newest complete checkpoint; 0 before the first."""
        return next((self.step_of(path) for path in self._newest_first() if self.is_complete(path)), 0)

    def best(self, key: str) -> Path | None:
        """The checkpoint with the highest finite ``key`` that is not damaged, the newest of equals; None without."""
        return self._best([path for path in self._newest_first() if not self._damage(path)], key)

    def metrics(self, path: Path) -> dict[str, float]:
        """What :meth:`save` was given for this checkpoint."""
        return {str(name): float(value) for name, value in read_marker(path)["metrics"].items()}

    @staticmethod
    def is_complete(path: Path) -> bool:
        """True when the marker is readable and every file that it lists is there with its size."""
        try:
            files = read_marker(path)["files"]
            return all((path / name).stat().st_size == _size(entry) for name, entry in files.items())
        except (OSError, ValueError):
            return False

    @staticmethod
    def step_of(path: Path) -> int:
        """The training step that a checkpoint folder's name carries."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(f"{path}: not a checkpoint folder; expected a name like step-00000050")
        return int(match[1])

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    @property
    def _record(self) -> Path:
        """Beside the folder: says that there was a checkpoint, where all have gone."""
        return self.directory.with_name(f"{self.directory.name}-newest.json")

    def _saved_step(self) -> int:
        """Step of the checkpoint that was saved last; 0 where nothing says so."""
        try:
            step = parse_object(read_file(self._record)).get("step")
        except (OSError, ValueError):  # of an earlier bgrpo, or damaged: it only tells of others that have gone
            return 0
        return step if type(step) is int and 0 < step < 10**15 else 0

    def _newest_first(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        found = (path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))
        return sorted(found, key=self.step_of, reverse=True)

    def _damage(self, path: Path) -> str:
        """What is wrong with a checkpoint, as :func:`find_damage` says, looked for once."""
        marker = path / MARKER
        key = path, marker.stat().st_mtime_ns if marker.exists() else 0
        if key not in self._known:
            self._known[key] = find_damage(path, self._required)
        return self._known[key]

    def _best(self, newest_first: list[Path], key: str) -> Path | None:
        scored = [(self.metrics(path).get(key, math.nan), path) for path in newest_first]
        finite = [(value, path) for value, path in scored if math.isfinite(value)]
        return max(finite, key=lambda pair: pair[0])[1] if finite else None

    def _prune(self, step: int, best_key: str | None) -> None:
        """Delete all but the newest and the best, and those that were passed over, as any later one was."""
        damaged = {path for (path, _), reason in self._known.items() if reason}
        for path in self._newest_first():
            if self.step_of(path) > step or (path in damaged and self.step_of(path) < step):
                _discard(path)
        complete = [path for path in self._newest_first() if self.is_complete(path)]
        best = self._best(complete, best_key) if best_key is not None else None
        for path in complete[self.keep :]:
            if path != best:
                _discard(path)

    def _remove_leftovers(self) -> None:
        """Folders that a killed writer left; there is one writer, so nobody is still filling them."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


def find_damage(path: Path, required: Sequence[str] = ()) -> str:
    """What is wrong with a checkpoint: the first file that is not as it was written; empty when none is.

    Checkpoints of an earlier bgrpo hold no digests: their sizes are compared. Files beside those that it was written
    with (``.DS_Store``, ``config.json~``) do not matter, unless they have a name that is looked for.

    Args:
        path: of the checkpoint.
        required: files that must be among those it was written with.
    """
    try:
        files = read_marker(path)["files"]
        for name in required:
            if name not in files:
                return f"{name} is not part of it"
        return find_change(path, files)
    except FileNotFoundError as error:
        return f"{Path(error.filename or MARKER).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or MARKER).name} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a folder, by its path in there; see :func:`find_change`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def find_change(folder: Path, files: Mapping[str, Any]) -> str:
    """The first file that is not as :func:`describe_files` found it, or was put there since; empty without one.

    Raises:
        OSError: a file cannot be read.
    """
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()} - {MARKER}
    for name in sorted(there ^ files.keys()):
        if name in files or _READ.fullmatch(name):
            return f"{name} is {'missing' if name in files else 'not part of it'}"
    for name, entry in files.items():
        size = (folder / name).stat().st_size
        if size != _size(entry):
            return f"{name} has {size} bytes, not {_size(entry)}"
        if isinstance(entry, dict) and sha256(folder / name) != entry["sha256"]:
            return f"{name} is not what was written: its SHA-256 differs"
    return ""


def read_marker(path: Path) -> dict[str, Any]:
    """A checkpoint's marker, in the form that :func:`_mark_complete` gives it.

    Raises:
        OSError, ValueError: it is not there, or not as it was written.
    """
    text = read_file(path / MARKER).decode()
    marker = parse_object(text)
    marker.pop("digest", None)
    files, metrics = marker.get("files"), marker.get("metrics")
    if not (
        isinstance(files, dict) and isinstance(metrics, dict) and marker.get("step") == CheckpointStore.step_of(path)
    ):
        raise ValueError(f"{MARKER} is no marker of this checkpoint")
    earlier = all(type(entry) is int for entry in files.values()) and _are_numbers(metrics)
    if not earlier and text != _render(marker):
        raise ValueError(f"{MARKER} is not what was written")
    return marker


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def _size(entry: Any) -> int:
    """Of a file, by its entry in a marker: an earlier bgrpo wrote the size alone."""
    return int(entry["bytes"] if isinstance(entry, dict) else entry)


def _are_numbers(metrics: dict[str, Any]) -> bool:
    return all(type(value) in (int, float) for value in metrics.values())


def _render(marker: dict[str, Any]) -> str:
    """The marker's text, with its digest."""
    digest = hashlib.sha256(json.dumps(marker).encode()).hexdigest()
    return json.dumps(marker | {"digest": digest}, indent=1)


def _mark_complete(folder: Path, step: int, metrics: dict[str, float]) -> None:
    marker = {"step": step, "files": describe_files(folder), "metrics": metrics}
    (folder / MARKER).write_text(_render(marker), "utf-8")


def _discard(path: Path) -> None:
    """Delete a checkpoint, marker first, so that an interrupted deletion never looks complete.

    What cannot be deleted ends no run: network file systems keep a file that is still open, as ``.nfs…``.
    """
    try:
        _delete(path)
    except OSError as error:
        logger.warning("%s: is not needed any more, and cannot be deleted (%s)", path, _reason(error))


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():  # somebody put it there
        path.unlink()
        return
    if not (path / MARKER).is_dir():
        (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
