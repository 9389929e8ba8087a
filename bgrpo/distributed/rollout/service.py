"""One Ray actor per run that turns problems into scored groups: it owns the rollout actors and the verifiers.

A step's problems are cut into requests in a fixed way, whatever the number of actors. Each request goes to a rollout
actor that holds the right weights; as soon as its completions are back they go to the verifiers, while other requests
still decode. Several learners may ask for the same step: it is computed once. Rollout actors and verifiers belong to
this actor and end with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from bgrpo.config import TrainConfig
from bgrpo.distributed.pool.actor_pool import ActorPool, Place, PoolError
from bgrpo.distributed.pool.pool_records import PoolLimits
from bgrpo.distributed.pool.pool_scaling import ScalingLimits
from bgrpo.distributed.rollout.actor import RolloutReply, RolloutRequest, spawn_rollout_actor
from bgrpo.distributed.rollout.reply_check import find_fault
from bgrpo.distributed.rollout.scorers import ScorerPools, all_of
from bgrpo.distributed.rollout.service_metrics import ServiceMetrics
from bgrpo.distributed.rollout.weights import Weights, WeightStore
from bgrpo.distributed.session.ray_session import rollout_demand
from bgrpo.distributed.watch.run_log import start_run_log
from bgrpo.errors import UserError
from bgrpo.groups import ScoredGroup
from bgrpo.runs.redaction import remember_secrets_in
from bgrpo.scoring.attempts import Attempt, attempts_of
from bgrpo.scoring.judge import Judge
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Problem
from bgrpo.training.watchdog import SUSPECT_SHARE

if TYPE_CHECKING:
    from bgrpo.decoding import DecodeSettings

SERVICE_NAMESPACE = "bgrpo"
START_S = 180.0
"""Longest wait for the service's own process."""

Numbered = list[tuple[int, Problem]]
"""Problems of a step, each with its index in the training problems. Whoever asks sends them: a service that Ray starts
again has nothing to find again, and holds no more than what it works on."""

TICK_S = 0.1
RATE_WINDOW_S = 60.0
REQUEST_TIMES_KEPT = 256
logger = logging.getLogger(__name__)


class RolloutService:
    """See the module. Create it with :func:`start_service`; the methods are called as Ray actor methods.

    Ray starts a service again whose process was lost: empty, until somebody publishes weights.

    Args:
        config: of the run.
        settings: how training groups are decoded.
        vocabulary: number of token ids of the policy.
        run: name of the run, for metrics and log lines.
        trial: what each part of the reward is tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
    """

    def __init__(
        self,
        config: TrainConfig,
        settings: DecodeSettings,
        vocabulary: int,
        run: str,
        trial: Attempt | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._judge = Judge(config)
        self._recent: deque[tuple[float, int]] = deque()  # (time, completions) of the last minute
        self._collections: dict[tuple[int, int, Weights], tuple[list[int], asyncio.Task[ray.ObjectRef]]] = {}
        # With both, a step's further draws need older weights than the newest: actors that loaded those in advance
        # would load twice per draw.
        self._draws_of_older_weights = config.rollout.max_staleness > 0 and config.rollout.max_extra_draws > 0
        self._request_s: deque[float] = deque(maxlen=REQUEST_TIMES_KEPT)
        self._reported = 0.0
        self._telling: asyncio.Task[None] | None = None
        remember_secrets_in(config.model_dump(mode="json"))
        self._log = start_run_log(run, "rollout service")
        self._metrics = ServiceMetrics(run)
        # Steps whose groups may still be asked for are those begun ahead and the present one; with further draws, as
        # many that are over may have been asked for later than these.
        self._steps_kept = 2 * max(1, config.rollout.max_staleness)
        self._weights = WeightStore(kept=max(2, config.rollout.max_staleness + 1))
        rollout = config.rollout
        self._rollouts = ActorPool(
            "rollout actor",
            rollout.actors,
            PoolLimits(placement_s=rollout.placement_s, load_s=rollout.timeout_s, silence_s=config.watchdog.silence_s),
            spawn=lambda: spawn_rollout_actor(config, rollout.cpus_per_actor),
            fetch=self._weights.reference,
            on_load=lambda actor, weights: self._metrics.loaded(actor, weights, self._rollouts.state),
            scaling=ScalingLimits(rollout.least_actors, rollout.most_actors, rollout.scale_up_s, rollout.scale_down_s),
            find_fault=lambda request, reply: find_fault(request, reply, vocabulary),
            asks=rollout_demand(config).reserved,
            stand_ins=rollout.stand_ins,
            spawn_stand_in=lambda: spawn_rollout_actor(config, cpus=0.0),
        )
        self._scorers = ScorerPools(config, trial)
        self._named_pools = {"rollout": self._rollouts, **self._scorers.pools}
        self._pools = list(self._named_pools.values())
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Spawn the actors; does not wait for them, see :meth:`ready`."""
        if self._clock is None:
            for pool in self._pools:
                pool.start()
            self._clock = asyncio.get_running_loop().create_task(self._tick_forever())

    async def ready(self, timeout_s: float) -> None:
        """Wait until at least one actor of each pool is up.

        Raises:
            UserError, PoolError: they cannot start; with the root cause.
            TimeoutError: it takes longer.
        """
        await self.start()
        deadline = time.monotonic() + timeout_s
        while any(self._is_starting(pool) for pool in self._pools):
            if time.monotonic() > deadline:
                raise TimeoutError(await self._late(f"no {' or no '.join(self._named_pools)} actor is up", timeout_s))
            await asyncio.sleep(TICK_S / 2)

    async def publish(self, version: int, wrapped: list[ray.ObjectRef]) -> None:
        """Make weights available as ``version`` and let idle actors load them.

        Args:
            version: of the policy. A version that was published before, or an older one, starts a new life of the run:
                everything published as this version or later is forgotten.
            wrapped: one reference to the buffer of :func:`bgrpo.policies.flat_weights.flatten_parameters`. The service
                makes its own copy, which survives the learner.
        """
        await self.start()  # the first call after Ray has started the service again
        weights = await self._weights.publish(version, wrapped[0])
        self._metrics.published(weights)
        if not self._draws_of_older_weights or self._rollouts.state.preferred not in self._weights:
            self._rollouts.prefer(weights)
        await self._weights.adopt(weights)

    async def prefetch(self, step: int, version: int, numbered: Numbered, timeout_s: float) -> None:
        """Begin what ``collect(step, version, 0, numbered, …)`` will be asked for; does not wait for it.

        What goes wrong is told by :meth:`collect`.
        """
        weights = await self._weights.wait(version, timeout_s)
        self._rollouts.prefer(weights)
        self._collection(step, 0, weights, numbered)

    async def collect(
        self, step: int, version: int, draw: int, numbered: Numbered, timeout_s: float
    ) -> list[ray.ObjectRef]:
        """Scored groups of these training problems, in that order, all decoded by ``version``.

        Computed once and serialised once, however many learners ask. If ``version`` is still to be published, waits
        for it.

        Args:
            step: training step.
            version: of the weights.
            draw: 0 for a step's first prompts, 1 … for further ones.
            numbered: the problems; the same for every caller of (step, draw).
            timeout_s: longest wait.

        Returns:
            One reference to the list of groups in the object store.

        Raises:
            UserError: prompts or configuration are wrong.
            PoolError: too many actors died; with the root cause.
            TimeoutError: the message says who waits for whom.
            RuntimeError: stale version, or another learner asked for other problems.
        """
        deadline = time.monotonic() + timeout_s
        weights = await self._weights.wait(version, timeout_s)
        task = self._collection(step, draw, weights, numbered)
        try:
            return [await asyncio.wait_for(asyncio.shield(task), max(0.0, deadline - time.monotonic()))]
        except TimeoutError:
            raise TimeoutError(await self._late(f"step {step}, draw {draw} is not complete", timeout_s)) from None

    async def run(
        self, problems: list[Problem], settings: DecodeSettings, version: int, seeds: list[int], timeout_s: float
    ) -> list[ScoredGroup]:
        """Scored groups of any problems, for evaluations; ``index`` counts them. Errors as :meth:`collect`.

        Args:
            problems: to decode.
            settings: how.
            version: of the weights.
            seeds: one per problem, for sampling.
            timeout_s: longest wait.
        """
        deadline = time.monotonic() + timeout_s
        weights = await self._weights.wait(version, timeout_s)
        work = self._score(list(range(len(problems))), problems, seeds, settings, weights)
        try:
            return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            late = await self._late(f"decoding {len(problems)} problems is not complete", timeout_s)
            raise TimeoutError(late) from None

    async def status(self) -> dict[str, Any]:
        """State of both pools, versions, rates and counts; ``failure`` is what ends the run, None while it works.

        ``service`` is the place of this process, ``cpu_s`` its processor time; ``request_s`` are decode times of the
        latest requests.
        """
        self._forget_old(time.monotonic())
        span = time.monotonic() - self._recent[0][0] if self._recent else 0.0
        rollout = self._rollouts.status()
        for actor in rollout["actors"]:
            held = self._rollouts.state.actors[actor["actor"]].holds
            actor["version"] = held.version if isinstance(held, Weights) else None
        return {
            "service": asdict(Place.here()),
            "rollout": rollout,
            **{name: pool.status() for name, pool in self._scorers.pools.items()},
            "versions": self._weights.versions,
            "outcomes": dict(self._metrics.outcomes),
            "rollouts_per_s": sum(count for _, count in self._recent) / span if span > 0 else 0.0,
            "request_s": list(self._request_s),
            "cpu_s": time.process_time(),
            "failure": next((pool.state.failure for pool in self._pools if pool.state.failure is not None), None),
        }

    async def scaling_decisions(self, seen: int) -> list[str]:
        """Why the pool of rollout actors grew or shrank, one line each; without the first ``seen``."""
        return self._rollouts.decisions[seen:]

    async def stall_report(self) -> str:
        """Who waits for whom, for how long, and what those do that have been at one thing for long."""
        return await self._report()

    async def shutdown(self) -> None:
        """End the actors of all pools; open calls fail."""
        if self._clock is not None:
            self._clock.cancel()
        for pool in self._pools:
            pool.shutdown()

    def _collection(self, step: int, draw: int, weights: Weights, numbered: Numbered) -> asyncio.Task[ray.ObjectRef]:
        """The one task that computes (step, draw); older steps' tasks are dropped."""
        key, indices = (step, draw, weights), [index for index, _ in numbered]
        if key not in self._collections:
            self._log.step = step
            seeds = [rollout_seed(self._config.seed, step, index, draw) for index in indices]
            work = self._score(indices, [problem for _, problem in numbered], seeds, self._settings, weights)
            task = asyncio.get_running_loop().create_task(_put(work))
            task.add_done_callback(_know_outcome)
            self._collections[key] = indices, task
            newest = list(dict.fromkeys((old, of.publication) for old, _, of in reversed(self._collections)))
            for old in [
                old for old in self._collections if (old[0], old[2].publication) not in newest[: self._steps_kept]
            ]:
                self._collections.pop(old)[1].cancel()
        asked, task = self._collections[key]
        if asked != indices:
            raise RuntimeError(f"step {step}, draw {draw}: one learner asked for {asked}, another for {indices}")
        return task

    async def _score(
        self,
        indices: Sequence[int],
        problems: Sequence[Problem],
        seeds: Sequence[int],
        settings: DecodeSettings,
        weights: Weights,
    ) -> list[ScoredGroup]:
        size = self._config.rollout.prompts_per_request
        with self._weights.in_use(weights):
            works = []
            for start in range(0, len(problems), size):
                cut = slice(start, start + size)
                request = RolloutRequest(weights, list(problems[cut]), list(seeds[cut]), settings)
                works.append(self._decode_and_check(indices[cut], request))
            return [group for groups in await all_of(works) for group in groups]

    async def _decode_and_check(self, indices: Sequence[int], request: RolloutRequest) -> list[ScoredGroup]:
        limit_s = self._config.rollout.timeout_s
        reply: RolloutReply = await self._rollouts.request(request, request.weights, limit_s)
        if reply.weights != request.weights:
            raise RuntimeError(f"asked for weights {request.weights}, got rollouts of {reply.weights}")
        self._request_s.append(reply.seconds)
        self._metrics.decoded(reply.seconds)
        verdicts = await self._scorers.judge(attempts_of(request.problems, reply.groups))
        groups = self._judge.score(indices, reply.groups, verdicts, request.weights.version)
        self._metrics.scored(groups)
        self._recent.append((time.monotonic(), sum(len(group.completions) for group in groups)))
        return groups

    def _is_starting(self, pool: ActorPool) -> bool:
        failure = pool.state.failure
        if failure is not None:
            raise UserError(failure) if pool.started_wrong else PoolError(failure)
        return not any(actor.is_up for actor in pool.state.actors.values())

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for pool in self._pools:
                pool.tick()
            now = time.monotonic()
            self._watch(now)
            self._metrics.sample(self._named_pools, now)

    def _watch(self, now: float) -> None:
        """Say who waits for whom, once per ``watchdog.stall_s`` without an answer."""
        stall_s = self._config.watchdog.stall_s
        waits = [pool.state.oldest_wait(now) for pool in self._pools]
        if max(waits) > stall_s and now - self._reported > stall_s:
            self._reported = now
            self._metrics.stalls += 1
            self._telling = asyncio.get_running_loop().create_task(self._tell_stall(max(waits)))

    async def _tell_stall(self, waited_s: float) -> None:
        logger.warning("nothing came back for %.0f s\n%s", waited_s, await self._report())

    def _forget_old(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()

    async def _late(self, what: str, timeout_s: float) -> str:
        return f"{what} after {timeout_s:g} s\n{await self._report()}"

    async def _report(self) -> str:
        busy_s = SUSPECT_SHARE * self._config.watchdog.stall_s
        stacks = await asyncio.gather(*(pool.stacks(busy_s) for pool in self._pools))
        waits = [line for pool in self._pools for line in pool.report()]
        return "\n".join([*waits, *(line for lines in stacks for line in lines)])


async def _put(work: Coroutine[Any, Any, list[ScoredGroup]]) -> ray.ObjectRef:
    """What ``work`` returns, in the object store."""
    return ray.put(await work)


def _know_outcome(task: asyncio.Task[ray.ObjectRef]) -> None:
    """A learner that died collects no more: without this, asyncio would complain that nobody looked at the error."""
    if not task.cancelled():
        task.exception()


def start_service(
    config: TrainConfig,
    settings: DecodeSettings,
    vocabulary: int,
    name: str | None = None,
    run: str = "",
    trial: Attempt | None = None,
) -> ActorHandle:
    """Create the service of a run; it ends with the process that created it.

    Ray starts it again, up to ``learner.max_failures`` times, when its process is lost: open calls fail, and everything
    that was published has to be published again.

    Args:
        config: of the run.
        settings: how training groups are decoded, see :func:`bgrpo.learning.rollout_source.decode_settings`.
        vocabulary: number of token ids of the policy.
        name: to find the actor with ``ray.get_actor(name, SERVICE_NAMESPACE)``.
        run: name of the run.
        trial: what each part of the reward is tried on.
    """
    actor_class: Any = ray.remote(num_cpus=0, max_restarts=config.learner.max_failures)(RolloutService)
    outside = "DEFAULT"  # not in the placement group of a Tune trial, which has no room for rollout actors
    service: Any = actor_class.options(name=name, namespace=SERVICE_NAMESPACE, scheduling_strategy=outside).remote(
        config, settings, vocabulary, run, trial
    )
    ray.get(service.start.remote(), timeout=START_S)
    return service
