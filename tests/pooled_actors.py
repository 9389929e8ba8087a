"""Actors for the pool's tests; workers import them by name."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bgrpo.distributed.pool.actor_pool import PooledActor
from bgrpo.distributed.rollout.actor import RolloutActor, RolloutReply, RolloutRequest
from bgrpo.errors import UserError
from bgrpo.groups import Group


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
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
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


class Garbler(RolloutActor):
    """A rollout actor whose completions are out of the vocabulary once in a lifetime of the file ``once``."""

    def __init__(self, once: str, policy: str) -> None:
        super().__init__(policy, "fp32", threads=1, device="cpu")
        self._once = Path(once)

    def serve(self, request: RolloutRequest) -> RolloutReply:
        reply = super().serve(request)
        try:
            self._once.unlink()
        except FileNotFoundError:
            return reply
        first, *others = reply.groups
        garbage = [replace(completion, tokens=[10**6] * len(completion.tokens)) for completion in first.completions]
        return replace(reply, groups=[Group(first.prompt_ids, garbage), *others])


class Unpreparable(PooledActor):
    """Cannot start, for a reason that a person can mend."""

    def prepare(self) -> None:
        raise UserError("policy nowhere: no such directory")


class Unlucky(PooledActor):
    """Cannot start, for whatever reason."""

    def prepare(self) -> None:
        raise OSError("the device is busy")
