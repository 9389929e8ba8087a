"""The library of faults: find a process of a run, hit it, wait for what follows. Only psutil, only this machine.

``bgrpo chaos`` uses it on every node of a cluster, the tests on their own processes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL

import psutil

TITLES = {
    "rollout": "RolloutActor",
    "verifier": "VerifierActor",
    "service": "RolloutService",
    "learner": "RayTrainWorker",
}
"""What the command line of a run's worker process holds, by its role."""

CLOCK_TOLERANCE_S = 2.0  # the time of a process's start is told in two ways
TAIL_BYTES = 1 << 16


class Missed(Exception):
    """A process could not be hit; says why."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A process to hit."""

    pid: int  #: of the process, or of its parent, see ``child``.
    title: str = ""  #: what its command line must hold, so that no other process is ever hit.
    child: bool = False  #: hit the only child of ``pid`` instead.
    started: float | None = None  #: when it began, seconds since 1970; None when that is not known.
    node: str = ""  #: Ray's id of its node.
    name: str = ""  #: in words, as ``rollout 3``.
    number: int | None = None  #: in its pool; None outside the pools.


def hit(victim: Victim | int, signal: int, parent: int | None = None) -> Victim:
    """Send a signal to a process that ``parent`` (None: anybody) has started; after SIGSTOP it hangs.

    Returns the process that got the signal, its start filled in.

    Raises:
        Missed: there is no such process.
    """
    victim = Victim(victim) if isinstance(victim, int) else victim
    try:
        process = psutil.Process(victim.pid)
        if victim.title not in " ".join(process.cmdline()) or parent not in (None, process.ppid()):
            raise Missed(f"process {victim.pid} is no {victim.title} of this Ray")
        if not _same(process, victim):
            raise Missed(f"process {victim.pid} is another one by now")
        if victim.child:
            below = children(victim.pid)
            if len(below) != 1:
                raise Missed(f"process {victim.pid} has {len(below)} children")
            process = psutil.Process(below[0])
        found = replace(victim, pid=process.pid, title="", child=False, started=process.create_time())
        process.send_signal(signal)
    except psutil.Error:
        raise Missed(f"process {victim.pid} is gone") from None
    return found


def alive(victim: Victim | int) -> bool:
    """True until the process has ended, whether or not its parent has taken notice."""
    victim = Victim(victim) if isinstance(victim, int) else victim
    try:
        process = psutil.Process(victim.pid)
        return _same(process, victim) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _same(process: psutil.Process, victim: Victim) -> bool:
    return victim.started is None or abs(process.create_time() - victim.started) <= CLOCK_TOLERANCE_S


def find(role: str) -> list[int]:
    """Processes below this one of a role of :data:`TITLES`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if TITLES[role] in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there; those of a verifier run its checks."""
    return [child.pid for child in psutil.Process(pid).children()]


def end_leftovers(victims: Sequence[Victim], limit_s: float) -> list[Victim]:
    """Wait until all have ended; those that have not in that time are killed, and returned."""
    with suppress(TimeoutError):
        wait_until(lambda: not any(map(alive, victims)), "the end of what was hit", limit_s)
    left = [victim for victim in victims if alive(victim)]
    for victim in left:
        with suppress(Missed):  # it ended just now
            hit(victim, SIGKILL)
    return left


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 200.0, poll_s: float = 0.02) -> float:
    """Seconds until the condition held.

    Raises:
        TimeoutError: it did not hold within ``limit_s``; says ``what`` was waited for.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(poll_s)
    return time.monotonic() - start


def last_step(metrics: Path) -> int:
    """The step of the last whole line of a ``metrics.jsonl``; 0 when there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


@contextmanager
def at_steps(metrics: Path, acts: Mapping[int, Callable[[], object]]) -> Iterator[list[int]]:
    """Act in a thread as soon as a run has made so many steps, one act after the other.

    Yields the steps whose acts have begun. What an act raises is raised at the end.
    """
    begun: list[int] = []
    over = threading.Event()

    def watch() -> None:
        for step in sorted(acts):
            while last_step(metrics) < step:
                if over.wait(0.02):
                    return
            begun.append(step)
            acts[step]()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield begun
        finally:
            over.set()
        watching.result()


def fill_disk(folder: Path, leave: int) -> Path:
    """Fill the file system of ``folder`` but for ``leave`` bytes; deleting the returned file ends the fault."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - leave)
    return ballast


def private_memory(pid: int) -> tuple[float, int] | None:
    """When a process began, and its resident memory without shared pages, in bytes; None when it is gone."""
    try:
        process = psutil.Process(pid)
        memory = process.memory_info()
        return process.create_time(), memory.rss - memory.shared
    except psutil.NoSuchProcess:
        return None
