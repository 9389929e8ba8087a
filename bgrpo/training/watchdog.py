"""Noticing that nothing moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

LONGEST_POLL_S = 1.0
END_S = 30.0
SUSPECT_SHARE = 0.5
"""A process is asked what it does when it has done one thing for this share of ``watchdog.stall_s``: what holds up a
run began a little after the run's last step."""


@dataclass(slots=True)
class Silence:
    """When to say that nothing has moved. Seconds; all times are of one clock.

    Attributes:
        first_s: of silence after which it is said.
        again_s: after which it is said again.
        since: when something moved last.
    """

    first_s: float
    again_s: float
    since: float
    _said: float | None = None

    def moved(self, now: float) -> None:
        """Something has moved."""
        self.since, self._said = now, None

    def due(self, now: float) -> float | None:
        """The silence up to ``now``, if it is to be said now; the caller says it."""
        wait, since = (self.first_s, self.since) if self._said is None else (self.again_s, self._said)
        if now - since < wait:
            return None
        self._said = now
        return now - self.since


class Watchdog:
    """Context manager with a thread that calls ``tell(seconds of silence)`` when nothing has moved for a while.

    Args:
        first_s: silence after which it is told.
        again_s: after which it is told again, as long as nothing moves.
        tell: called in the thread, never together with :meth:`moved`.
    """

    def __init__(self, first_s: float, again_s: float, tell: Callable[[float], None]) -> None:
        self._silence = Silence(first_s, again_s, time.monotonic())
        self._poll_s = min(LONGEST_POLL_S, first_s / 10)
        self._tell = tell
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._silence.moved(time.monotonic())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(END_S)

    def moved(self) -> None:
        """Something has moved; waits for a report that is being told."""
        with self._lock:
            self._silence.moved(time.monotonic())

    def _watch(self) -> None:
        while not self._over.wait(self._poll_s):
            with self._lock:
                silent_s = self._silence.due(time.monotonic())
                if silent_s is not None:
                    self._tell(silent_s)
