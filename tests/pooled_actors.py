"""Actors for the pool's tests; workers import them by name."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from bgrpo.distributed.actor_pool import PooledActor
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
            case ["garbage", replies] if Path(replies).exists():
                Path(replies).unlink()
                return "garbage"
            case ["memory"]:
                resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
                return len(bytearray(64 << 30))
            case ["sleep", seconds, *_]:
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

    def prepare(self) -> None:
        raise UserError("policy nowhere: no such directory")


class Unlucky(PooledActor):
    """Cannot start, for whatever reason."""

    def prepare(self) -> None:
        raise OSError("the device is busy")
