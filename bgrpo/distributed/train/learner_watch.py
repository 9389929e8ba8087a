"""What learners leave in the run's folder for the driver: what they do while no step ends, and how they crashed."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bgrpo.files import parse_object, read_file, write_atomically
from bgrpo.training.stacks import current_stacks, describe_processes
from bgrpo.training.watchdog import SUSPECT_SHARE, Watchdog

FOLDER = "learners"
AGAIN_SHARE = 0.1
"""Of ``watchdog.stall_s``: how often a silent learner says again what it does."""
OUTDATED_SHARE = 0.4
"""Of ``watchdog.stall_s``: a learner that said it this long ago does not answer any more."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SilentLearner:
    """What one learner does while no step ends.

    Attributes:
        where: learner, process and host.
        when: seconds since 1970 when it wrote this.
        silent_s: seconds since its last step, or its start.
        stacks: of its threads.
    """

    where: str
    when: float
    silent_s: float
    stacks: str


@dataclass(frozen=True, slots=True)
class OpenEnd:
    """A learner's process that ended, or was ended, without leaving its loop.

    Attributes:
        rank: of the learner.
        where: learner, process and host.
        crash: what Python's fault handler wrote about a crash in native code; empty otherwise.
    """

    rank: int
    where: str
    crash: str


class LearnerWatch:
    """Context manager that has the learner write its stacks when no step ends for a good part of ``stall_s``.

    Args:
        run_dir: folder of the run.
        rank: of the learner.
        stall_s: ``watchdog.stall_s``.
    """

    def __init__(self, run_dir: Path, rank: int, stall_s: float) -> None:
        self._where = _place(rank)
        self._file = _silence_file(run_dir, rank)
        self._dog = Watchdog(SUSPECT_SHARE * stall_s, AGAIN_SHARE * stall_s, self._write)

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        self._dog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dog.__exit__(kind, error, trace)
        self._file.unlink(missing_ok=True)

    def moved(self) -> None:
        """A step has ended."""
        self._dog.moved()
        self._file.unlink(missing_ok=True)

    def _write(self, silent_s: float) -> None:
        silent = SilentLearner(self._where, time.time(), silent_s, current_stacks())
        try:
            self._file.parent.mkdir(exist_ok=True)
            write_atomically(self._file, json.dumps(asdict(silent)))
        except OSError as error:
            logger.warning("%s cannot be written (%s):\n%s", self._file, error, silent.stacks)


def describe_learners(run_dir: Path, workers: int, stall_s: float, now: float) -> str:
    """What the learners do, as far as they say.

    Args:
        run_dir: folder of the run.
        workers: number of learners.
        stall_s: ``watchdog.stall_s``.
        now: seconds since 1970.
    """
    texts = {}
    for rank in range(workers):
        silent = _read_silence(_silence_file(run_dir, rank))
        if silent is None:
            texts[f"learner {rank}"] = "says nothing: it starts, or it is stopped or in native code"
            continue
        age_s = now - silent.when
        old = f"does not answer (stopped, or in native code); {age_s:.0f} s ago:\n"
        texts[f"{silent.where}, no step for {silent.silent_s + age_s:.0f} s"] = (
            old if age_s > OUTDATED_SHARE * stall_s else ""
        ) + silent.stacks
    return describe_processes(texts)


@contextmanager
def crash_record(run_dir: Path, rank: int) -> Iterator[None]:
    """While the block runs, a file says which process it is, and takes Python's traceback of a crash in native code.

    The file goes when the block ends, however it does; it stays behind when the process ends without.
    """
    path = _crash_file(run_dir, rank)
    handled = faulthandler.is_enabled()
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:  # a full disk: what cannot do without it says so
        logger.warning("%s cannot be written: %s", path, error)
        yield
        return
    with file:
        file.write(json.dumps({"where": _place(rank), "when": time.time()}) + "\n")
        file.flush()
        faulthandler.enable(file, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()
            if handled:
                faulthandler.enable(all_threads=False)
            path.unlink(missing_ok=True)


def read_open_ends(run_dir: Path, since: float) -> list[OpenEnd]:
    """The learners that have begun after ``since`` (seconds since 1970) and not left their loop, by rank."""
    ends = []
    for path in (run_dir / FOLDER).glob("*.crash"):
        head, _, crash = read_file(path).decode("utf-8", errors="replace").partition("\n")
        place = _parse(head)
        if place is not None and place["when"] >= since:
            ends.append(OpenEnd(int(path.stem), place["where"], crash.strip()))
    return sorted(ends, key=lambda end: end.rank)


def _read_silence(path: Path) -> SilentLearner | None:
    try:
        fields = _parse(read_file(path).decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    return None if fields is None else SilentLearner(**fields)


def _parse(text: str) -> dict | None:
    """A JSON object; None when a full disk cut it off."""
    try:
        return parse_object(text)
    except ValueError:
        return None


def _silence_file(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"{rank}.silent"


def _crash_file(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"{rank}.crash"


def _place(rank: int) -> str:
    return f"learner {rank} (process {os.getpid()} on {socket.gethostname()})"
