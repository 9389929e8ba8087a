"""Nothing is waited for in silence: what takes longer than a moment is told, with how long it takes at most."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LIBRARIES = "PyTorch and other libraries to be imported"
SILENT_S = 4.0
AGAIN = 3.0
"""What has been told is told again when it has lasted so many times as long."""

_POLL_S = 0.25


@dataclass(eq=False, slots=True)
class Wait:
    """Something that is being waited for.

    Attributes:
        what: of it, for people; may change meanwhile.
        limit_s: how long at most; None where nothing bounds it.
        since: when the wait began.
        told_s: how long it had lasted when that was last said; 0 before.
    """

    what: str
    limit_s: float | None
    since: float = field(default_factory=time.monotonic)
    told_s: float = 0.0

    def line(self, now: float) -> str:
        """What is said of it."""
        most = "" if self.limit_s is None else f", at most {self.limit_s:g} s"
        return f"waiting: {self.what}: {now - self.since:.0f} s so far{most}"


class _Waits:
    """Those of this process, the innermost last."""

    def __init__(self) -> None:
        self.current: list[Wait] = []
        self._told_at = 0.0
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # a fork has no threads
            self._thread = threading.Thread(target=self._run, name="waits", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        idle = 0
        while idle < 8:  # a thread for each of many short waits would cost more than they do
            time.sleep(_POLL_S)
            current = list(self.current)
            idle = 0 if current else idle + 1
            if current:
                self._look(current, time.monotonic())

    def _look(self, current: list[Wait], now: float) -> None:
        """Tell of the innermost wait when nothing has been told for long, be it that outer ones have taken the time."""
        wait, age_s = current[-1], now - current[-1].since
        silent_s = now - max(current[0].since, self._told_at)
        if silent_s >= SILENT_S and age_s >= AGAIN * wait.told_s:
            wait.told_s, self._told_at = age_s, now
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed: the wait goes on
                print(wait.line(now), file=sys.stderr, flush=True)


_waits = _Waits()


@contextmanager
def waiting(what: str, limit_s: float | None = None) -> Iterator[Wait]:
    """While the block runs, say on standard error what is waited for, as soon as it takes longer than a moment.

    Of waits within waits the innermost is told.

    Args:
        what: is waited for.
        limit_s: how long it takes at most.
    """
    wait = Wait(what, limit_s)
    _waits.current.append(wait)
    _waits.watch()
    try:
        yield wait
    finally:
        _waits.current.remove(wait)
