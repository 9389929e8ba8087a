"""The pool of actors as a pure state machine: events and the time come in, commands go out, nothing else happens.

An actor is ``pending`` until Ray has placed it, then ``starting`` → (``loading`` →) ``idle`` ⇄ ``busy``, and from
anywhere ``dead``. A dead actor never comes back: its slot gets another actor under a new number, which starts from
nothing. Numbers of actors and requests are never used twice, so a late event about a dead actor or an answered request
is recognised and ignored.

    pending ──placed──► starting ──spawned──► idle ──Load──► loading ──loaded──► idle ──Dispatch──► busy ──► idle
       └────────────────────┴──── died, past its time limit, or silent ────┴────────────────────────┘
                                                 └──► dead ──(back-off)──► Spawn of another actor

With a :class:`.pool_scaling.PoolScaler` the number of slots follows the requests. A slot that goes gives up an idle
actor at once, and a busy one when it has finished its request.

Stand-ins are actors beyond that number. They start once all others are up and rest, without weights, until others are
missing: as many as are missing then load and work, until those are back.

Every request ends in exactly one ``Answer`` or ``Refuse``, or is withdrawn by the caller. :mod:`.actor_pool` carries
the commands out with Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from bgrpo.distributed.pool.pool_records import (
    Actor,
    ActorState,
    Answer,
    Command,
    Dispatch,
    Failure,
    Kill,
    Load,
    PoolLimits,
    Refuse,
    Request,
    Resized,
    Retire,
    Slot,
    Spawn,
    Unplaceable,
)
from bgrpo.distributed.pool.pool_scaling import PoolScaler, ScalingLimits

LONGEST_TICK_S = 1.0
"""More time than this between two ticks is no silence of the actors: the pool's own process stood still."""

_LEAVES_FIRST = (ActorState.PENDING, ActorState.STARTING, ActorState.IDLE, ActorState.LOADING, ActorState.BUSY)


@dataclass
class PoolState:
    """All that is known about the pool. Methods named after events return the commands that follow from them.

    Attributes:
        size: number of actors asked for.
        scaling: bounds of ``size``; None when it never changes.
        stand_ins: number of stand-ins.
        slots: by number; those that retire, and those of stand-ins, are not counted in ``size``.
        first_failure: of the pool's whole life.
        failure: why the pool gave up; None while it works. A pool that gave up refuses every request.
        restarts: actors spawned beyond the first of each slot.
        garbled_replies: replies that could not be answers.
    """

    size: int
    limits: PoolLimits = field(default_factory=PoolLimits)
    scaling: ScalingLimits | None = None
    stand_ins: int = 0
    actors: dict[int, Actor] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    preferred: Hashable = None
    first_failure: Failure | None = None
    failure: str | None = None
    restarts: int = 0
    garbled_replies: int = 0
    _root: Failure | None = None
    _scaler: PoolScaler | None = None
    _spawned: int = 0
    _slots_made: int = 0
    _unplaced_since: float | None = None
    _ticked: float | None = None
    _commands: list[Command] = field(default_factory=list)

    def start(self, now: float) -> list[Command]:
        """Fill every slot."""
        if self.scaling is not None:
            self._scaler = PoolScaler(self.scaling, now)
        self._add_slots(self.size, now)
        self._add_slots(self.stand_ins, now, is_stand_in=True)
        return self.tick(now)

    def submit(self, number: int, weights: Hashable, limit_s: float, now: float) -> list[Command]:
        """A new request; ``number`` was never used before."""
        if self.failure is not None:
            return [Refuse(number, self.failure)]
        self.requests[number] = Request(number, weights, limit_s, now)
        self.queue.append(number)
        return self._proceed(now)

    def withdraw(self, number: int, now: float) -> list[Command]:
        """Nobody waits for this request any more. An actor that works on it finishes, and its reply is ignored."""
        self.requests.pop(number, None)
        if number in self.queue:
            self.queue.remove(number)
        return self._proceed(now)

    def prefer(self, weights: Hashable, now: float) -> list[Command]:
        """Actors without other work load these weights in advance."""
        self.preferred = weights
        return self._proceed(now)

    def placed(self, number: int, now: float, where: str = "") -> list[Command]:
        """Ray has found room for the actor; ``where`` (process and host) joins the cause of its death."""
        actor = self._in_state(number, ActorState.PENDING)
        if actor is None:
            return []
        actor.where, self._unplaced_since = where, None
        self._enter(actor, ActorState.STARTING, self.limits.start_s, now)
        return self._proceed(now)

    def spawned(self, number: int, now: float) -> list[Command]:
        """The actor is up, and holds no weights."""
        actor = self._in_state(number, ActorState.STARTING)
        if actor is None:
            return []
        self._enter(actor, ActorState.IDLE, math.inf, now)
        return self._proceed(now)

    def loaded(self, number: int, weights: Hashable, now: float) -> list[Command]:
        """The actor holds the weights it was told to load."""
        actor = self._in_state(number, ActorState.LOADING)
        if actor is None or actor.loading != weights:
            return []
        actor.holds = weights
        self._enter(actor, ActorState.IDLE, math.inf, now)
        return self._proceed(now)

    def weights_lost(self, number: int, weights: Hashable, cause: str, now: float) -> list[Command]:
        """The weights cannot be fetched by anybody: their owner is gone. Waiting requests for them are refused."""
        actor = self._in_state(number, ActorState.LOADING)
        if actor is None or actor.loading != weights:
            return []
        if self.preferred == weights:
            self.preferred = None
        for request in [number for number in self.queue if self.requests[number].weights == weights]:
            self._refuse(request, f"the weights it needs are lost: {cause}")
        self._enter(actor, ActorState.IDLE, math.inf, now)
        return self._proceed(now)

    def replied(self, number: int, request: int, now: float) -> list[Command]:
        """The actor finished the request."""
        actor = self._in_state(number, ActorState.BUSY)
        if actor is None or actor.request != request:
            return []
        if request in self.requests:
            del self.requests[request]
            self._commands.append(Answer(request))
        self._root = None
        for slot in self.slots.values():
            slot.streak = 0
        self.slots[actor.slot].own_streak = 0
        self._enter(actor, ActorState.IDLE, math.inf, now)
        return self._proceed(now)

    def garbled(self, number: int, request: int, fault: str, now: float) -> list[Command]:
        """What the actor replied cannot be an answer: it is killed, and the request done again elsewhere."""
        actor = self._in_state(number, ActorState.BUSY)
        if actor is None or actor.request != request:
            return []
        self.garbled_replies += 1
        self._kill(actor, f"its reply to request {request} is garbage: {fault}", now)
        return self._proceed(now)

    def refused(self, number: int, request: int, cause: str, now: float) -> list[Command]:
        """The actor says that the request itself is wrong: doing it again elsewhere would end the same way."""
        actor = self._in_state(number, ActorState.BUSY)
        if actor is None or actor.request != request:
            return []
        if request in self.requests:
            self._refuse(request, cause)
        self._enter(actor, ActorState.IDLE, math.inf, now)
        return self._proceed(now)

    def heard(self, number: int) -> None:
        """The actor's process has answered; no command follows from that."""
        if number in self.actors:
            self.actors[number].silent_s = 0.0

    def died(self, number: int, cause: str, now: float, fatal: bool = False, node_lost: bool = False) -> list[Command]:
        """The actor is gone.

        Args:
            number: of the actor.
            cause: why, as far as known.
            now: the time.
            fatal: any other would fail in the same way, so that the pool gives up at once.
            node_lost: its node went away, which says nothing against the actor, or the request that it worked on.
        """
        if number in self.actors:
            self._bury(number, cause, now, fatal, node_lost)
        return self._proceed(now)

    def abandon(self, cause: str, now: float) -> list[Command]:
        """Give up: every request is refused, now and later, and no actor is replaced."""
        self._give_up(cause)
        return self._proceed(now)

    def tick(self, now: float) -> list[Command]:
        """Time passes: actors past a limit are killed, the size follows the requests, empty slots are filled."""
        passed_s = 0.0 if self._ticked is None else min(now - self._ticked, LONGEST_TICK_S)
        self._ticked = now
        for actor in list(self.actors.values()):
            actor.silent_s += passed_s if actor.is_up else 0.0
            if now - actor.since > actor.limit_s:
                self._kill(actor, f"it was {self._doing(actor)} for more than {actor.limit_s:g} s", now)
            elif actor.silent_s > self.limits.silence_s:
                self._kill(actor, f"its process gave no sign of life for more than {self.limits.silence_s:g} s", now)
        if self.failure is None:
            self._scale(now)
            for index, slot in self.slots.items():
                if slot.actor is None and now >= slot.spawn_at and not (slot.is_stand_in and self._missing()):
                    self._spawn(index, slot, now)
            self._watch_placement(now)
        return self._proceed(now)

    def oldest_wait(self, now: float) -> float:
        """Age in seconds of the oldest open request; 0 when there is none."""
        return max((now - request.submitted for request in self.requests.values()), default=0.0)

    def describe(self, now: float) -> list[str]:
        """One line per open request and per actor: who waits for whom, for how long."""
        lines = []
        workers = {actor.request: actor for actor in self.actors.values() if actor.request is not None}
        for request in self.requests.values():
            where = f"at actor {workers[request.number].number}" if request.number in workers else "in the queue"
            lines.append(f"request {request.number} has waited {now - request.submitted:.1f} s, is {where}")
        for actor in self.actors.values():
            lines.append(f"actor {actor.number} has been {self._doing(actor)} for {now - actor.since:.1f} s")
        for index, slot in self.slots.items():
            if slot.actor is None and self.failure is None:
                when = "once the others are up" if slot.is_stand_in else f"in {max(0.0, slot.spawn_at - now):.1f} s"
                lines.append(f"slot {index} is empty, next actor {when}")
        return lines

    def at_work(self) -> list[Actor]:
        """The actors that are up and do not rest: a stand-in does unless it works, or others are missing."""
        others = [actor for actor in self.actors.values() if actor.is_up and not actor.is_stand_in]
        stand_ins = [actor for actor in self.actors.values() if actor.is_up and actor.is_stand_in]
        stand_ins.sort(key=lambda actor: actor.state == ActorState.IDLE)  # those that work already come first
        working = sum(actor.state != ActorState.IDLE for actor in stand_ins)
        return others + stand_ins[: max(working, self._missing())]

    def _missing(self) -> int:
        """How many actors fewer than asked for are up; stand-ins do not count."""
        return max(0, self.size - sum(actor.is_up and not actor.is_stand_in for actor in self.actors.values()))

    def _proceed(self, now: float) -> list[Command]:
        """Give idle actors something to do, and hand out all commands gathered since the event."""
        for index in [index for index, slot in self.slots.items() if slot.is_retiring]:
            self._retire(index)
        idle = [actor for actor in self.at_work() if actor.state == ActorState.IDLE]
        on_their_way = Counter(actor.loading for actor in self.actors.values() if actor.state == ActorState.LOADING)
        for number in list(self.queue):
            if not idle:
                break
            request = self.requests[number]
            holder = next((actor for actor in idle if actor.holds == request.weights), None)
            if holder is not None:
                idle.remove(holder)
                self.queue.remove(number)
                self._enter(holder, ActorState.BUSY, request.limit_s, now)
                holder.request = number
                self._commands.append(Dispatch(holder.number, number))
            elif on_their_way[request.weights] > 0:
                on_their_way[request.weights] -= 1
            else:
                self._load(idle.pop(0), request.weights, now)
        for actor in idle:
            if self.preferred is not None and actor.holds != self.preferred:
                self._load(actor, self.preferred, now)
        if self._scaler is not None:
            working = sum(actor.state in (ActorState.IDLE, ActorState.BUSY) for actor in self.at_work())
            places = sum(not slot.is_stand_in for slot in self.slots.values())
            self._scaler.observe(now, len(self.requests), len(self.queue), max(0, places - working))
        commands, self._commands = self._commands, []
        return commands

    def _scale(self, now: float) -> None:
        decision = self._scaler.decide(now, self.size) if self._scaler is not None else None
        if decision is None:
            return
        self._commands.append(Resized(self.size, decision.size, decision.reason))
        before, self.size = self.size, decision.size
        if decision.size > before:
            leaving = [slot for slot in self.slots.values() if slot.is_retiring][: decision.size - before]
            for slot in leaving:
                slot.is_retiring = False
            self._add_slots(decision.size - before - len(leaving), now)
        else:
            staying = [index for index, slot in self.slots.items() if not (slot.is_retiring or slot.is_stand_in)]
            staying.sort(key=lambda index: (self._usefulness(self.slots[index]), -index))
            for index in staying[: before - decision.size]:
                self._retire(index)

    def _add_slots(self, count: int, now: float, is_stand_in: bool = False) -> None:
        for _ in range(count):
            self.slots[self._slots_made] = Slot(spawn_at=now, is_stand_in=is_stand_in)
            self._slots_made += 1

    def _usefulness(self, slot: Slot) -> int:
        return -1 if slot.actor is None else _LEAVES_FIRST.index(self.actors[slot.actor].state)

    def _retire(self, index: int) -> None:
        """Let a slot go, now or, when its actor is busy, later."""
        number = self.slots[index].actor
        if number is not None and self.actors[number].state == ActorState.BUSY:
            self.slots[index].is_retiring = True
            return
        del self.slots[index]
        if number is not None:
            del self.actors[number]
            self._commands.append(Retire(number))

    def _watch_placement(self, now: float) -> None:
        if not self.actors:
            return
        if any(actor.state != ActorState.PENDING for actor in self.actors.values()):
            self._unplaced_since = None
        elif self._unplaced_since is None:
            self._unplaced_since = now
        elif now - self._unplaced_since > self.limits.placement_s:
            self._commands.append(Unplaceable(now - self._unplaced_since))

    def _kill(self, actor: Actor, reason: str, now: float) -> None:
        self._commands.append(Kill(actor.number, reason))
        self._bury(actor.number, f"killed because {reason}", now)

    def _bury(self, number: int, cause: str, now: float, fatal: bool = False, node_lost: bool = False) -> None:
        actor = self.actors.pop(number)
        if actor.where and not fatal:
            cause = f"{cause} ({actor.where})"
        failure = Failure(number, now, self._doing(actor), cause)
        self.first_failure = self.first_failure or failure
        slot = self.slots[actor.slot]
        slot.actor, slot.spawn_at = None, now
        if not node_lost:
            self._root = self._root or failure
            slot.streak += 1
            slot.own_streak += 1
            slot.spawn_at += self._backoff(slot.own_streak)
        if fatal:
            self._give_up(f"an actor cannot start: {cause}")
        elif slot.streak > self.limits.respawns:
            root = self._root or failure
            self._give_up(
                f"{slot.streak} actors failed in a row without one answer in between; "
                f"the first was actor {root.actor}, {root.doing}: {root.cause}"
            )
        if actor.request in self.requests:
            self._redo(self.requests[actor.request], cause, node_lost)

    def _load(self, actor: Actor, weights: Hashable, now: float) -> None:
        self._enter(actor, ActorState.LOADING, self.limits.load_s, now)
        actor.loading, actor.holds = weights, None
        self._commands.append(Load(actor.number, weights))

    def _spawn(self, index: int, slot: Slot, now: float) -> None:
        actor = Actor(self._spawned, index, now, math.inf, slot.is_stand_in)
        self.restarts += slot.was_filled
        slot.was_filled = True
        self._spawned += 1
        self.actors[actor.number] = actor
        slot.actor = actor.number
        self._commands.append(Spawn(actor.number, slot.is_stand_in))

    def _redo(self, request: Request, cause: str, node_lost: bool) -> None:
        request.deaths += not node_lost
        if request.deaths >= self.limits.deaths_per_request:
            self._refuse(request.number, f"{request.deaths} actors in a row died over it; the last: {cause}")
        else:
            self.queue.insert(0, request.number)

    def _refuse(self, number: int, cause: str) -> None:
        del self.requests[number]
        if number in self.queue:
            self.queue.remove(number)
        self._commands.append(Refuse(number, cause))

    def _give_up(self, failure: str) -> None:
        if self.failure is None:
            self.failure = failure
            for number in list(self.requests):
                self._refuse(number, failure)

    def _backoff(self, streak: int) -> float:
        if streak < 2:
            return 0.0
        return min(self.limits.max_backoff_s, self.limits.backoff_s * 2 ** min(streak - 2, 30))

    def _in_state(self, number: int, state: ActorState) -> Actor | None:
        actor = self.actors.get(number)
        return actor if actor is not None and actor.state == state else None

    def _enter(self, actor: Actor, state: ActorState, limit_s: float, now: float) -> None:
        actor.state, actor.since, actor.limit_s, actor.loading, actor.request = state, now, limit_s, None, None

    def _doing(self, actor: Actor) -> str:
        if actor.state == ActorState.LOADING:
            return f"loading weights {actor.loading}"
        if actor.state == ActorState.BUSY:
            return f"busy with request {actor.request}"
        return str(actor.state)
