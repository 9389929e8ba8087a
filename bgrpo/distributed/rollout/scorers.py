"""The actors that score: verifiers, each with killable child processes, and reward actors, which hold reward models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle

from bgrpo.config import TrainConfig
from bgrpo.distributed.pool.actor_pool import ActorPool, PooledActor, remote_class
from bgrpo.distributed.pool.pool_records import PoolLimits
from bgrpo.distributed.session.ray_session import node_share, reward_demand
from bgrpo.groups import Verdict
from bgrpo.scoring.attempts import Attempt, by_group
from bgrpo.scoring.check_process import START_LIMIT_S
from bgrpo.scoring.judge import Judge

LEAST_ATTEMPTS_PER_REQUEST = 16
"""Fewer are not worth a request of their own."""

RESTART_ALLOWANCE_S = 10.0  # per item whose check takes its child down

Scores = dict[str, list[Verdict]]
"""Part of the reward -> what it says about each attempt."""


class VerifierActor(PooledActor):
    """Scores with the task's check, users' functions, metrics and reward servers.

    Args:
        judge: whose parts they are.
        names: of the parts.
        trial: what they are tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
    """

    def __init__(self, judge: Judge, names: Sequence[str], trial: Attempt | None) -> None:
        self._judge = judge
        self._names = names
        self._trial = trial

    def prepare(self) -> None:
        """Start what scores; UserError when it is not there, or fails in its trial."""
        self._scorer = self._judge.start(self._trial, self._names, tries_templates=False)

    def serve(self, request: list[Attempt]) -> Scores:
        """What each part of the reward says about each attempt."""
        return self._scorer.run(request)


class RewardActor(VerifierActor):
    """Scores with reward models."""

    def prepare(self) -> None:
        """Load the models; UserError when one cannot be loaded."""
        import torch

        torch.set_num_threads(self._judge.config.reward_model.threads)
        super().prepare()


def find_fault(attempts: Sequence[Attempt], reply: Any) -> str | None:
    """What is wrong with a reply to these attempts; None when nothing is."""
    if not isinstance(reply, dict):
        return "it is no mapping of parts to verdicts"
    for name, verdicts in reply.items():
        if not isinstance(verdicts, list) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            return f"{name}: it is no list of verdicts"
        if len(verdicts) != len(attempts):
            return f"{name}: {len(verdicts)} verdicts for {len(attempts)} completions"
    return None


class ScorerPools:
    """``verifier.processes`` verifiers, which reserve no CPU, and where there are reward models the actors for them.

    Attributes:
        pools: by name (``verifier``, ``reward``), those that this reward needs.

    Args:
        config: of the run.
        trial: what the parts are tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
    """

    def __init__(self, config: TrainConfig, trial: Attempt | None) -> None:
        judge = self._judge = Judge(config)
        models = [name for name, part in judge.parts.items() if part.held_model is not None]
        others = [name for name in judge.parts if name not in models]
        limits = PoolLimits(placement_s=config.rollout.placement_s, silence_s=config.watchdog.silence_s)
        self.pools: dict[str, ActorPool] = {}
        self._limit_s = max(part.timeout_s or config.verifier.timeout_s for part in judge.parts.values())
        self._sizes = {"verifier": config.verifier.processes, "reward": config.reward_model.processes}
        self._reward_limit_s = config.reward_model.timeout_s
        if others:
            share = node_share(config.verifier.node_resource)

            def spawn_verifier() -> ActorHandle:
                return remote_class(VerifierActor).options(num_cpus=0, resources=share).remote(judge, others, trial)

            self.pools["verifier"] = ActorPool(
                "verifier", config.verifier.processes, limits, spawn_verifier, find_fault=find_fault, asks=share
            )
        if models:
            demand = reward_demand(config)
            actors = config.reward_model

            def spawn_reward() -> ActorHandle:
                options = remote_class(RewardActor).options(
                    num_cpus=actors.cpus_per_actor,
                    num_gpus=actors.gpus_per_actor,
                    resources=node_share(actors.node_resource),
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": str(actors.threads)}},
                )
                return options.remote(judge, models, trial)

            self.pools["reward"] = ActorPool(
                "reward actor", actors.processes, limits, spawn_reward, find_fault=find_fault, asks=demand.reserved
            )

    async def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """The verdict on each attempt, in order; whole groups, on all actors at once."""
        found = await all_of([self._ask(name, attempts) for name in self.pools])
        return self._judge.verdicts(attempts, {part: verdicts for scores in found for part, verdicts in scores.items()})

    async def _ask(self, name: str, attempts: Sequence[Attempt]) -> Scores:
        """What the parts of one pool say."""
        size = max(LEAST_ATTEMPTS_PER_REQUEST, -(-len(attempts) // self._sizes[name]))
        batches: list[list[Attempt]] = [[]]
        for group in by_group(attempts):
            if len(batches[-1]) >= size:
                batches.append([])
            batches[-1] += group
        replies: list[Scores] = await all_of(
            [
                self.pools[name].request(batch, weights=None, limit_s=self._request_limit_s(name, batch))
                for batch in batches
            ]
        )
        return {part: [verdict for reply in replies for verdict in reply[part]] for part in replies[0]}

    def _request_limit_s(self, name: str, batch: list[Attempt]) -> float:
        if name == "reward":
            return self._reward_limit_s
        # Every check may crash its child once, then run into its time limit, and the child starts again each time.
        return START_LIMIT_S + len(batch) * (2 * self._limit_s + RESTART_ALLOWANCE_S)


async def all_of(works: list[Any]) -> list[Any]:
    """Results of all coroutines, in order; as soon as one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
