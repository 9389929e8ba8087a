"""Which faults there are, and the seeded schedule that says when which one comes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bgrpo.errors import UserError


class FaultKind(StrEnum):
    """What is done to a run.

    ``kill-…`` is SIGKILL, ``stop-…`` SIGSTOP (the process hangs), ``terminate-driver`` SIGTERM, as a preemption notice;
    after a fault of the driver the run is resumed. ``kill-check`` hits the child process of a verifier that runs the
    checks. ``remove-node`` kills the raylet of a node that has rollout actors, but no learner and not the head.
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


DRIVER_FAULTS = frozenset({FaultKind.KILL_DRIVER, FaultKind.TERMINATE_DRIVER})
RESTARTING_FAULTS = DRIVER_FAULTS | {FaultKind.KILL_LEARNER}
"""After these the learners start again from the last checkpoint, whatever else happens."""

DEFAULT_KINDS = tuple(kind for kind in FaultKind if kind not in (FaultKind.KILL_SERVICE, FaultKind.REMOVE_NODE))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the schedule.

    Attributes:
        index: its place in the schedule, from 0.
        kind: what is done.
        gap_s: seconds between the fault before it (or the first training step) and this one.
        pick: in [0, 1), chooses the victim among the possible ones.
    """

    index: int
    kind: FaultKind
    gap_s: float
    pick: float

    def victim_of(self, count: int) -> int:
        """Which of ``count`` possible victims it hits."""
        return int(self.pick * count)


def fault_at(index: int, seed: int, every: tuple[float, float], kinds: Sequence[FaultKind]) -> Fault:
    """The fault of this index, a function of the arguments alone.

    Kinds come in rounds: each round has every kind once, in an order of its own.

    Args:
        index: from 0.
        seed: of the schedule.
        every: shortest and longest gap in seconds.
        kinds: to choose from.
    """
    turn, place = divmod(index, len(kinds))
    order = random.Random(f"round {seed} {turn}").sample(list(kinds), len(kinds))
    draw = random.Random(f"fault {seed} {index}")
    return Fault(index, order[place], draw.uniform(*every), draw.random())


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
