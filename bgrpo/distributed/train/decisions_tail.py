"""What the driver shows of the rollout pool's decisions about its size, fetched without waiting for the service."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError

POLL_S = 2.0


class DecisionsTail:
    """New decisions of the rollout service, one line each.

    Args:
        service: handle of the rollout service.
    """

    def __init__(self, service: Any) -> None:
        self._service = service
        self._seen = 0
        self._call: Any = None
        self._next = 0.0

    def new_lines(self, now: float) -> list[str]:
        """Lines that have come since the last call.

        Args:
            now: seconds of any clock that never goes back; asks at most once per :data:`POLL_S`.
        """
        if self._call is None:
            if now < self._next:
                return []
            self._next = now + POLL_S
            self._call = self._service.scaling_decisions.remote(self._seen)
        if not ray.wait([self._call], timeout=0)[0]:
            return []
        call, self._call = self._call, None
        try:
            lines: list[str] = ray.get(call)
        except RayActorError:  # Ray starts it again, and it counts anew
            self._seen = 0
            return []
        self._seen += len(lines)
        return lines
