"""Actors for the pool's tests; workers import them by name."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from typing import Any

from bgrpo.distributed.actor_pool import Place, PooledActor
from bgrpo.errors import UserError


class Echo(PooledActor):
    """Answers with what it was asked and its process id, after doing what the request says."""

    def __init__(self) -> None:
        self._weights: Hashable = None

    def load(self, weights: Hashable, buffer: Any) -> None:
        self._weights = weights, int(buffer.sum())

    def serve(self, request: Any) -> Any:
        match request:
            case ["exit"]:
                os._exit(3)
            case ["raise"]:
                raise ValueError("in the actor")
            case ["refuse"]:
                raise UserError("prompt 3 is empty")
            case ["sleep", seconds]:
                time.sleep(seconds)
            case ["hang"]:
                hang_for_ever()
        return request, os.getpid(), self._weights


def hang_for_ever() -> None:
    """What a report on a stall is to name."""
    while True:
        time.sleep(1)


class Unpreparable(PooledActor):
    """Cannot start, for a reason that a person can mend."""

    def prepare(self) -> Place:
        raise UserError("policy nowhere: no such directory")


class Unlucky(PooledActor):
    """Cannot start, for whatever reason."""

    def prepare(self) -> Place:
        raise OSError("the device is busy")
