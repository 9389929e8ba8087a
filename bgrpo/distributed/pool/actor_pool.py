"""Carries out the decisions of :class:`.pool_decisions.PoolState` with Ray actors, in an asyncio event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError

from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import (
    ActorState,
    Answer,
    Command,
    Dispatch,
    Kill,
    Load,
    PoolLimits,
    Refuse,
    Resized,
    Retire,
    Spawn,
    Unplaceable,
)
from bgrpo.distributed.pool.pool_scaling import ScalingLimits
from bgrpo.distributed.session.ray_errors import explain, is_node_loss
from bgrpo.errors import RunError, UserError
from bgrpo.training.stacks import NO_ANSWER, current_stacks, describe_processes

WATCH_GROUP = "watch"
WATCH_THREADS = 3  # linger holds one
PULSE_S = 2.0
"""Pause between an actor's answer and the next question whether it lives."""

STACKS_S = 3.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process runs."""

    pid: int
    host: str
    node: str

    @classmethod
    def here(cls) -> Place:
        """Of this process."""
        return cls(os.getpid(), socket.gethostname(), ray.get_runtime_context().get_node_id())

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class PooledActor:
    """What a pool asks of its actors. Subclasses do the work in :meth:`serve`.

    A :class:`UserError` from :meth:`prepare` means that no actor can start, one from :meth:`serve` that the request is
    wrong wherever it is done; any other exception costs the actor its life.
    """

    def place(self) -> Place:
        """Where the process runs; the first call, so that its answer says that Ray had room for the actor."""
        return Place.here()

    def prepare(self) -> None:
        """Do whatever must come before the first request."""

    def load(self, weights: Hashable, buffer: Any) -> None:
        """Hold these weights from now on; only called in pools whose requests name weights."""
        raise NotImplementedError

    def serve(self, request: Any) -> Any:
        """Answer one request."""
        raise NotImplementedError

    @ray.method(concurrency_group=WATCH_GROUP)
    def linger(self) -> NoReturn:
        """Never return: the call fails the moment the process ends, which is how the pool learns of it."""
        _wait_forever()

    @ray.method(concurrency_group=WATCH_GROUP)
    def pulse(self) -> None:
        """Answer: a process that hangs does not."""

    @ray.method(concurrency_group=WATCH_GROUP)
    def stacks(self) -> str:
        """What the threads of the actor's process do, also while it is busy."""
        return current_stacks(but_in=[_wait_forever.__code__])


def _wait_forever() -> NoReturn:
    while True:
        threading.Event().wait()


class PoolError(RunError):
    """The pool cannot answer a request; the message holds the root cause with its traceback and host."""


@dataclass(frozen=True, slots=True)
class _Open:
    payload: Any
    future: asyncio.Future[Any]


class ActorPool:
    """A pool of actors that answers requests, whichever of them die.

    Attributes:
        answered: requests answered by each actor.
        decisions: about the size of the pool, one line each, oldest first.

    Args:
        name: of one actor, in reports: ``"rollout actor"``.
        size: number of actors at the start.
        limits: see :class:`PoolLimits`.
        spawn: creates one actor of a :class:`PooledActor` class that was made remote with :func:`remote_class`.
        fetch: object store reference of weights, for :meth:`PooledActor.load`.
        on_load: called with an actor's number and the weights that it holds now.
        scaling: bounds of a size that follows the requests; without them it stays as it is.
        find_fault: says what is wrong with a reply to a payload, None when nothing is.
        asks: Ray resources that each actor reserves, for the message that the cluster has no room.
        stand_ins: actors that rest until others are missing.
        spawn_stand_in: creates one of them; by default as any other.
    """

    def __init__(
        self,
        name: str,
        size: int,
        limits: PoolLimits,
        spawn: Callable[[], ActorHandle],
        fetch: Callable[[Any], ray.ObjectRef] | None = None,
        on_load: Callable[[int, Hashable], None] | None = None,
        scaling: ScalingLimits | None = None,
        find_fault: Callable[[Any, Any], str | None] | None = None,
        asks: Mapping[str, float] | None = None,
        stand_ins: int = 0,
        spawn_stand_in: Callable[[], ActorHandle] | None = None,
    ) -> None:
        self.name = name
        self.state = PoolState(size, limits, scaling, stand_ins)
        self._find_fault = find_fault
        self._asks = asks or {}
        self._spawn = spawn
        self._spawn_stand_in = spawn_stand_in or spawn
        self._fetch = fetch
        self._on_load = on_load
        self.answered: Counter[int] = Counter()
        self.decisions: list[str] = []
        self._handles: dict[int, ActorHandle] = {}
        self._places: dict[int, Place] = {}
        self._open: dict[int, _Open] = {}
        self._submitted = 0
        self._user_errors: set[int] = set()
        self.started_wrong = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Spawn the actors; does not wait for them."""
        self._obey(self.state.start(time.monotonic()))

    def tick(self) -> None:
        """To be called a few times per second: notices time limits, replaces the dead."""
        self._obey(self.state.tick(time.monotonic()))

    def prefer(self, weights: Hashable) -> None:
        """Actors without work load these weights in advance."""
        self._obey(self.state.prefer(weights, time.monotonic()))

    async def request(self, payload: Any, weights: Hashable, limit_s: float) -> Any:
        """Have one request answered.

        Args:
            payload: argument of :meth:`PooledActor.serve`.
            weights: what the actor must hold; None when it needs none.
            limit_s: an actor that works longer on it is killed, and the request done again elsewhere.

        Raises:
            UserError: the request, or the pool's configuration, is wrong.
            PoolError: too many actors died.
        """
        number = self._submitted
        self._submitted += 1
        open_ = self._open[number] = _Open(payload, asyncio.get_running_loop().create_future())
        self._obey(self.state.submit(number, weights, limit_s, time.monotonic()))
        try:
            return await open_.future
        except asyncio.CancelledError:
            self._open.pop(number, None)
            self._obey(self.state.withdraw(number, time.monotonic()))
            raise

    def status(self) -> dict[str, Any]:
        """State of every actor, the queue, and the first failure (``at``: seconds ago)."""
        now, state, failure = time.monotonic(), self.state, self.state.first_failure
        at_work = {actor.number for actor in state.at_work()}
        actors = [
            {
                "actor": actor.number,
                "state": str(actor.state),
                "for_s": now - actor.since,
                "is_stand_in": actor.is_stand_in,
                "is_at_work": actor.number in at_work,
                **(asdict(self._places[actor.number]) if actor.number in self._places else {}),
            }
            for actor in state.actors.values()
        ]
        return {
            "size": state.size,
            "actors": actors,
            "queue": len(state.queue),
            "oldest_wait_s": state.oldest_wait(now),
            "restarts": state.restarts,
            "garbled_replies": state.garbled_replies,
            "first_failure": None if failure is None else {**asdict(failure), "at": now - failure.at},
            "failure": state.failure,
        }

    def report(self) -> list[str]:
        """Who waits for whom, for how long."""
        lines = [f"{self.name}s: {line}" for line in self.state.describe(time.monotonic())]
        if self.state.first_failure is not None:
            failure = self.state.first_failure
            lines.append(f"{self.name}s: first failure: actor {failure.actor}, {failure.doing}: {failure.cause}")
        return lines

    async def stacks(self, busy_s: float) -> list[str]:
        """What the actors do that are placed and have not been idle for more than ``busy_s`` seconds."""
        now, state = time.monotonic(), self.state
        resting = (ActorState.PENDING, ActorState.IDLE)
        suspects = [
            actor
            for actor in state.actors.values()
            if actor.state not in resting and now - actor.since > busy_s and actor.number in self._handles
        ]
        answers = await asyncio.gather(*(_ask_stacks(self._handles[actor.number]) for actor in suspects))
        texts = {
            f"{self.name} {actor.number} ({actor.where})": answer
            for actor, answer in zip(suspects, answers, strict=True)
        }
        return describe_processes(texts).splitlines()

    def shutdown(self) -> None:
        """Kill the actors; open requests fail."""
        for task in self._tasks:
            task.cancel()
        self._obey(self.state.abandon(f"the {self.name}s were shut down", time.monotonic()))
        for number in list(self._handles):
            self._kill(number)

    def _obey(self, commands: list[Command], reply: Any = None) -> None:
        for command in commands:
            match command:
                case Spawn(actor, is_stand_in):
                    self._in_background(self._live(actor, self._spawn_stand_in if is_stand_in else self._spawn))
                case Load(actor, weights):
                    self._in_background(self._load(actor, self._handles[actor], weights))
                case Dispatch(actor, request):
                    self._in_background(self._serve(actor, self._handles[actor], request, self._open[request].payload))
                case Kill(actor, reason):
                    self._log(logging.WARNING, actor, f"killed because {reason}")
                    self._kill(actor)
                case Retire(actor):
                    self._log(logging.INFO, actor, "ended: the pool became smaller")
                    self._kill(actor)
                case Resized(before, after, reason):
                    self.decisions.append(f"{self.name}s {before} → {after}: {reason}")
                    logger.info("%s", self.decisions[-1])
                case Unplaceable(seconds):
                    self._give_up_on_placement(seconds)
                case Answer(request):
                    future = self._open.pop(request).future
                    if not future.done():  # done: cancelled just now
                        future.set_result(reply)
                case Refuse(request, cause):
                    wrong = self.started_wrong or request in self._user_errors
                    future = self._open.pop(request).future
                    if not future.done():
                        future.set_exception(UserError(cause) if wrong else PoolError(cause))

    async def _live(self, actor: int, spawn: Callable[[], ActorHandle]) -> None:
        if actor not in self.state.actors:  # retired before its turn came
            return
        handle = self._handles[actor] = spawn()
        try:
            place = self._places[actor] = await handle.place.remote()
            self._obey(self.state.placed(actor, time.monotonic(), str(place)))
            await handle.prepare.remote()
            self._log(logging.INFO, actor, "up")
            self._obey(self.state.spawned(actor, time.monotonic()))
            self._in_background(self._listen(actor, handle))
            await handle.linger.remote()
        except UserError as error:
            self.started_wrong = True
            self._lose(actor, error, fatal=True)
        except RayError as error:
            self._lose(actor, error)

    async def _listen(self, actor: int, handle: ActorHandle) -> None:
        """Ask for signs of life, as long as the process does."""
        with contextlib.suppress(RayError):  # of the end of the process, ``linger`` tells
            while self._handles.get(actor) is handle:
                await handle.pulse.remote()
                self.state.heard(actor)
                await asyncio.sleep(PULSE_S)

    async def _load(self, actor: int, handle: ActorHandle, weights: Hashable) -> None:
        assert self._fetch is not None, "only pools with weights load"
        try:
            await handle.load.remote(weights, self._fetch(weights))
        except ObjectLostError as error:
            self._obey(self.state.weights_lost(actor, weights, explain(error), time.monotonic()))
        except RayError as error:
            self._lose(actor, error)
        else:
            self._obey(self.state.loaded(actor, weights, time.monotonic()))
            if self._on_load is not None:
                self._on_load(actor, weights)

    async def _serve(self, actor: int, handle: ActorHandle, request: int, payload: Any) -> None:
        try:
            reply = await handle.serve.remote(payload)
        except UserError as error:
            self._user_errors.add(request)
            self._obey(self.state.refused(actor, request, explain(error), time.monotonic()))
        except RayError as error:
            self._lose(actor, error)
        else:
            fault = self._find_fault(payload, reply) if self._find_fault is not None else None
            if fault is not None:
                self._obey(self.state.garbled(actor, request, fault, time.monotonic()))
                return
            self.answered[actor] += 1
            self._obey(self.state.replied(actor, request, time.monotonic()), reply)

    def _give_up_on_placement(self, seconds: float) -> None:
        self.started_wrong = True  # whoever waits is told as of any cluster that is too small
        asks, has = amounts(self._asks) or "nothing", amounts(ray.cluster_resources())
        cause = f"no {self.name} found room for {seconds:.0f} s: each asks for {asks}; the cluster has {has}"
        self._obey(self.state.abandon(cause, time.monotonic()))

    def _lose(self, actor: int, error: Exception, fatal: bool = False) -> None:
        if actor in self.state.actors:  # else it was killed for a reason that was logged then
            self._log(logging.WARNING, actor, f"lost: {explain(error)}")
        self._kill(actor)
        self._obey(self.state.died(actor, explain(error), time.monotonic(), fatal, is_node_loss(error)))

    def _log(self, level: int, actor: int, what: str) -> None:
        name, place = f"{self.name} {actor}", self._places.get(actor, "not placed yet")
        logger.log(level, "%s (%s): %s", name, place, what, extra={"actor": name})

    def _kill(self, actor: int) -> None:
        handle = self._handles.pop(actor, None)
        self._places.pop(actor, None)
        if handle is not None:
            ray.kill(handle, no_restart=True)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # nobody else would hear of it
            cause = f"the pool of {self.name}s is broken: {type(error).__name__}: {error}"
            self._obey(self.state.abandon(cause, time.monotonic()))


def remote_class(actor_class: type[PooledActor]) -> Any:
    """The Ray actor class of a pooled actor: never restarted by Ray, because the pool does that."""
    return ray.remote(max_restarts=0, concurrency_groups={WATCH_GROUP: WATCH_THREADS})(actor_class)  # type: ignore[call-overload]


def amounts(resources: Mapping[str, float]) -> str:
    """Resources for people: ``4 CPU, 1 GPU``; without memory, object store and the names of nodes."""
    hidden = ("memory", "object_store_memory")
    shown = {name: share for name, share in sorted(resources.items()) if share and name not in hidden}
    return ", ".join(f"{share:g} {name}" for name, share in shown.items() if not name.startswith("node:"))


async def _ask_stacks(handle: ActorHandle) -> str:
    try:
        return await asyncio.wait_for(handle.stacks.remote(), STACKS_S)
    except TimeoutError:
        return NO_ANSWER
    except RayError as error:
        return f"is being replaced: {explain(error)}"
