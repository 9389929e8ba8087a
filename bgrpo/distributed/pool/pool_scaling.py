"""How many actors a pool should have, decided from what its requests have been through. Pure: the time is an argument.

A training step's requests come at once, are decoded, and then the pool is idle while the learner learns. So nothing is
decided from one moment: growing looks at how long requests have waited in the last ``down_s`` seconds, shrinking at how
many requests were open at once in that time. What is promised:

- the size stays between the least and the most;
- an actor is added only after requests waited for ``up_s`` seconds since the last decision, so two decisions to grow
  are at least ``up_s`` apart;
- the pool shrinks only ``down_s`` or more after the last decision and after the actors that it asked for were up
  (waiting for them puts it off by ``down_s`` at most), and never below the number of requests that were open at once at
  any moment of the last ``down_s`` seconds. So steps that repeat make it grow, or shrink, but never
  both, if ``down_s`` is longer than learning and the decoding of one request together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingLimits:
    """Between what, and how fast, a pool changes its size.

    Attributes:
        least: actors that are always asked for.
        most: actors that are never exceeded.
        up_s: waiting of requests, in seconds within ``down_s``, that makes the pool grow by one.
        down_s: seconds for which an actor must have been superfluous before it goes.
    """

    least: int
    most: int
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Another size, and why."""

    size: int
    reason: str


class PoolScaler:
    """See the module. Times are seconds of one clock that never goes back.

    Args:
        limits: of the pool.
        now: when the pool starts.
    """

    def __init__(self, limits: ScalingLimits, now: float) -> None:
        self._limits = limits
        self._changed, self._settled = now, now
        self._queued, self._open, self._since = 0, 0, now
        self._is_short = False
        self._waits: deque[tuple[float, float]] = deque()  # when requests waited that nobody was about to serve
        self._peaks: deque[tuple[float, int]] = deque()  # (until when, open requests), fewer and fewer

    def observe(self, now: float, open_requests: int, queued: int, about_to_serve: int) -> None:
        """To be called after everything that happens to the pool.

        Args:
            now: the time.
            open_requests: neither answered nor refused.
            queued: those that no actor works on.
            about_to_serve: actors that start, load or wait for a place: each will take a queued request.
        """
        self._pass_time(now)
        self._open, self._queued = open_requests, queued
        self._is_short = queued > about_to_serve
        if about_to_serve:
            self._settled = min(now, self._changed + self._limits.down_s)

    def decide(self, now: float, size: int) -> ScalingDecision | None:
        """Another size for the pool; None when it should stay as it is. The caller carries the decision out.

        Args:
            now: the time.
            size: actors that the pool asks for at present.
        """
        self._pass_time(now)
        limits = self._limits
        if size < limits.most and self._is_short:
            begin = max(self._changed, now - limits.down_s)
            waited = sum(end - max(start, begin) for start, end in self._waits if end > begin)
            if waited >= limits.up_s:
                seen = f"requests waited for {waited:.1f} s of the last {now - begin:.1f} s (limit {limits.up_s:g} s)"
                return self._decided(now, size + 1, f"{seen}, {self._queued} wait now")
        peak = max(self._open, self._peaks[0][1] if self._peaks else 0)
        if size > max(limits.least, peak) and now - max(self._changed, self._settled) >= limits.down_s:
            at_most = f"at most {peak} requests were open at once" if peak else "no request came"
            return self._decided(now, max(limits.least, peak), f"{at_most} for {limits.down_s:g} s")
        return None

    def _decided(self, now: float, size: int, reason: str) -> ScalingDecision:
        self._changed = now
        return ScalingDecision(size, reason)

    def _pass_time(self, now: float) -> None:
        """What was observed last held until now."""
        if self._is_short and now > self._since:
            if self._waits and self._waits[-1][1] == self._since:
                self._waits[-1] = self._waits[-1][0], now
            else:
                self._waits.append((self._since, now))
        while self._peaks and self._peaks[-1][1] <= self._open:
            self._peaks.pop()
        self._peaks.append((now, self._open))
        self._since = now
        begin = now - self._limits.down_s
        while self._waits and self._waits[0][1] <= begin:
            self._waits.popleft()
        while self._peaks[0][0] <= begin:
            self._peaks.popleft()
