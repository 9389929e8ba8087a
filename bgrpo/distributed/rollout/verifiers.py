"""The actors that check: each owns one killable child process, see :mod:`bgrpo.scoring.check_process`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle

from bgrpo.config import TrainConfig
from bgrpo.distributed.pool.actor_pool import ActorPool, PooledActor, remote_class
from bgrpo.distributed.pool.pool_records import PoolLimits
from bgrpo.distributed.session.ray_session import node_share
from bgrpo.groups import Verdict
from bgrpo.scoring.attempts import Attempt, by_group
from bgrpo.scoring.check_process import START_LIMIT_S
from bgrpo.scoring.judge import Judge

LEAST_ATTEMPTS_PER_REQUEST = 16
"""Fewer are not worth a request of their own."""

RESTART_ALLOWANCE_S = 10.0  # per item whose check takes its child down


class VerifierActor(PooledActor):
    """Runs checks in its child process.

    Args:
        judge: whose checks they are.
        trial: what they are tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
    """

    def __init__(self, judge: Judge, trial: Attempt | None) -> None:
        self._judge = judge
        self._trial = trial

    def prepare(self) -> None:
        """Start the child; UserError when its target cannot be imported, or fails in its trial."""
        self._scorer = self._judge.start(self._trial)

    def serve(self, request: list[Attempt]) -> dict[str, list[Verdict]]:
        """What each part of the reward says about each attempt."""
        return self._scorer.run(request)


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


class VerifierPool:
    """``verifier.processes`` verifier actors. They reserve no CPU: most of the time they wait.

    Args:
        config: of the run.
        trial: what the checks are tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
    """

    def __init__(self, config: TrainConfig, trial: Attempt | None) -> None:
        judge = self._judge = Judge(config)
        self._timeout_s = max(part.timeout_s or config.verifier.timeout_s for part in judge.parts.values())
        self._processes = config.verifier.processes

        share = node_share(config.verifier.node_resource)

        def spawn() -> ActorHandle:
            return remote_class(VerifierActor).options(num_cpus=0, resources=share).remote(judge, trial)

        limits = PoolLimits(placement_s=config.rollout.placement_s, silence_s=config.watchdog.silence_s)
        self.pool = ActorPool("verifier", config.verifier.processes, limits, spawn, find_fault=find_fault, asks=share)

    async def check(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """The verdict on each attempt, in order; whole groups, on all verifiers at once."""
        size = max(LEAST_ATTEMPTS_PER_REQUEST, -(-len(attempts) // self._processes))
        batches: list[list[Attempt]] = [[]]
        for group in by_group(attempts):
            if len(batches[-1]) >= size:
                batches.append([])
            batches[-1] += group
        found = await all_of([self._check(batch) for batch in batches])
        return [verdict for verdicts in found for verdict in verdicts]

    async def _check(self, batch: list[Attempt]) -> list[Verdict]:
        # Every check may crash its child once, then run into its time limit, and the child starts again each time.
        limit_s = START_LIMIT_S + len(batch) * (2 * self._timeout_s + RESTART_ALLOWANCE_S)
        return self._judge.verdicts(batch, await self.pool.request(batch, weights=None, limit_s=limit_s))


async def all_of(works: list[Any]) -> list[Any]:
    """Results of all coroutines, in order; as soon as one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
