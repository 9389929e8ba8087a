"""What :mod:`.pool_decisions` keeps, and the commands it gives."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds on waiting and on trying again.

    Attributes:
        placement_s: longest time in which Ray has no room for any actor of the pool.
        start_s: longest start of an actor once Ray has placed it.
        load_s: longest loading of weights.
        silence_s: longest silence of an actor's process, whatever the actor does: it answers all the time.
        respawns: failures of one slot in a row, without one answer from any slot in between, that are survived. A node
            that goes away is no failure of its actors.
        deaths_per_request: actors that may die over one request before it is refused.
        backoff_s: wait before the second replacement in a row of one slot; doubled each time (the first is immediate).
        max_backoff_s: longest such wait.
    """

    placement_s: float = 900.0
    start_s: float = 600.0
    load_s: float = 300.0
    silence_s: float = 30.0
    respawns: int = 5
    deaths_per_request: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Spawn:
    """Create the actor of this number; report ``placed``, ``spawned`` or ``died``."""

    actor: int
    is_stand_in: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Make the actor hold these weights; report ``loaded``, ``weights_lost`` or ``died``."""

    actor: int
    weights: Hashable


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to the actor, which holds its weights; report ``replied``, ``refused`` or ``died``."""

    actor: int
    request: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the actor's process, because of ``reason``; it is dead already as far as this machine is concerned."""

    actor: int
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """End the actor's process: the pool has become smaller, and nothing is wrong with the actor."""

    actor: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The pool asks for another number of actors from now on."""

    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """Ray has had no room for any of the actors for too long; ``abandon`` the pool, and say what it asked for."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply that was just reported answers the request."""

    request: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request will never be answered."""

    request: int
    cause: str


Command = Spawn | Load | Dispatch | Kill | Retire | Resized | Unplaceable | Answer | Refuse


class ActorState(StrEnum):
    """Where an actor is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(slots=True)
class Actor:
    """One actor, alive as far as is known.

    Attributes:
        slot: which of the pool's places it fills.
        since: when it entered its state.
        limit_s: how long it may stay in its state.
        silent_s: how long its process has not answered, once it is up.
        is_stand_in: it works only while others are missing.
        where: process and host, once it is up.
        holds: weights it holds; None after the start.
        loading: weights on their way, while ``loading``.
        request: what it works on, while ``busy``.
    """

    number: int
    slot: int
    since: float
    limit_s: float
    is_stand_in: bool = False
    silent_s: float = 0.0
    state: ActorState = ActorState.PENDING
    where: str = ""
    holds: Hashable = None
    loading: Hashable = None
    request: int | None = None

    @property
    def is_up(self) -> bool:
        """Placed and started: it can load and work."""
        return self.state not in (ActorState.PENDING, ActorState.STARTING)


@dataclass(slots=True)
class Slot:
    """One place of the pool.

    Attributes:
        actor: who fills it; None while waiting for the next spawn.
        spawn_at: when to spawn the next, while empty.
        was_filled: an actor was there before.
        is_stand_in: its actor rests unless others are missing; not counted in the size of the pool.
        is_retiring: the pool has become smaller: the slot goes as soon as its actor has finished its request.
        streak: failures since the last answer from any slot.
        own_streak: failures since the last answer from this slot; decides the back-off.
    """

    actor: int | None = None
    spawn_at: float = 0.0
    was_filled: bool = False
    is_stand_in: bool = False
    is_retiring: bool = False
    streak: int = 0
    own_streak: int = 0


@dataclass(slots=True)
class Request:
    """One request that is neither answered nor refused.

    Attributes:
        weights: what the actor that works on it must hold.
        limit_s: longest work on it.
        submitted: when it came.
        deaths: actors that died over it.
    """

    number: int
    weights: Hashable
    limit_s: float
    submitted: float
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """An actor's death.

    Attributes:
        actor: its number.
        at: when it was noticed.
        doing: what the actor was doing.
        cause: as far as known, with traceback and host.
    """

    actor: int
    at: float
    doing: str
    cause: str
