"""Which faults there are, and the seeded schedule that says when which one comes."""

from __future__ import annotations

import random
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

DEFAULT_KINDS = tuple(kind for kind in FaultKind if kind != FaultKind.REMOVE_NODE)


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


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which fault comes.

    Attributes:
        seed: decides everything else.
        every: shortest and longest gap in seconds.
        kinds: to choose from.
        length: number of faults; None: no end.
    """

    seed: int
    every: tuple[float, float]
    kinds: tuple[FaultKind, ...]
    length: int | None = None

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


def read_schedule(seed: int, every: str, kinds: str | None, length: int | None) -> Schedule:
    """A schedule as a command line gives it; see :func:`parse_every` and :func:`parse_kinds`.

    Raises:
        UserError: no gap or kind.
    """
    return Schedule(seed, parse_every(every), parse_kinds(kinds), length)


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
