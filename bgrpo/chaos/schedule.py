"""Which faults there are, and the seeded schedule that says when which one comes."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from bgrpo.errors import UserError

T = TypeVar("T")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM, "remove": signal.SIGKILL}


class FaultKind(StrEnum):
    """What is done to a run: a verb of :data:`SIGNALS` and the target.

    A stopped process hangs. SIGTERM is a preemption notice. After a fault of the driver the run is resumed.
    ``kill-check`` hits the child process of a verifier that runs the checks. ``remove-node`` kills the raylet of a node
    that has rollout actors, but no learner and not the head.
    """

    KILL_ROLLOUT = "kill-rollout"
    STOP_ROLLOUT = "stop-rollout"
    KILL_VERIFIER = "kill-verifier"
    KILL_CHECK = "kill-check"
    KILL_LEARNER = "kill-learner"
    KILL_SERVICE = "kill-service"
    KILL_DRIVER = "kill-driver"
    TERMINATE_DRIVER = "terminate-driver"
    REMOVE_NODE = "remove-node"

    @property
    def target(self) -> str:
        """``rollout``, ``verifier``, ``check``, ``learner``, ``service``, ``driver`` or ``node``."""
        return self.partition("-")[2]

    @property
    def signal(self) -> signal.Signals:
        """What the target gets."""
        return SIGNALS[self.partition("-")[0]]


DEFAULT_KINDS = tuple(kind for kind in FaultKind if kind != FaultKind.REMOVE_NODE)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the schedule."""

    index: int  #: its place in the schedule, from 0.
    kind: FaultKind  #: what is done.
    gap_s: float  #: seconds between the fault before it (or the first training step) and this one.
    pick: float  #: in [0, 1), chooses the victim among the possible ones.

    def choose(self, victims: Sequence[T]) -> T:
        """Which of the possible victims it hits."""
        return victims[int(self.pick * len(victims))]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which fault comes."""

    seed: int  #: decides everything else.
    every: tuple[float, float]  #: shortest and longest gap in seconds.
    kinds: tuple[FaultKind, ...]  #: to choose from.
    length: int | None = None  #: number of faults; None: no end.

    def fault(self, index: int) -> Fault | None:
        """The fault of this index (from 0), a function of seed and index alone; None after the last.

        Kinds come in rounds: each round has every kind once, in an order of its own.
        """
        if self.length is not None and index >= self.length:
            return None
        turn, place = divmod(index, len(self.kinds))
        order = random.Random(f"round {self.seed} {turn}").sample(self.kinds, len(self.kinds))
        draw = random.Random(f"fault {self.seed} {index}")
        return Fault(index, order[place], draw.uniform(*self.every), draw.random())


def parse_kinds(text: str | None) -> tuple[FaultKind, ...]:
    """Kinds from ``kill-rollout,kill-learner``; None means :data:`DEFAULT_KINDS`.

    Raises:
        UserError: an unknown kind, or none.
    """
    if text is None:
        return DEFAULT_KINDS
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [str(kind) for kind in FaultKind]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(
            f"--faults {text}: expected a list of {', '.join(known)}; {unknown or 'nothing'} is none of them"
        )
    return tuple(dict.fromkeys(FaultKind(name) for name in names))


def parse_every(text: str) -> tuple[float, float]:
    """Shortest and longest gap in seconds from ``20,40``, or from ``30``.

    Raises:
        UserError: no such numbers.
    """
    try:
        gaps = [float(part) for part in text.split(",")]
    except ValueError:
        gaps = []
    low, high = (gaps[0], gaps[-1]) if len(gaps) in (1, 2) else (0.0, 0.0)
    if not 0 < low <= high < float("inf"):
        raise UserError(f"--every {text}: expected seconds, as 30, or shortest and longest gap, as 20,40")
    return low, high
