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
from bgrpo.scoring.check_process import START_LIMIT_S
from bgrpo.scoring.judge import Judge

LEAST_ITEMS_PER_REQUEST = 16
"""Fewer are not worth a request of their own."""

RESTART_ALLOWANCE_S = 10.0  # per item whose check takes its child down


class VerifierActor(PooledActor):
    """Runs checks in its child process.

    Args:
        judge: whose checks they are.
        trial: what they are tried on, see :func:`bgrpo.scoring.judge.trial_of`.
    """

    def __init__(self, judge: Judge, trial: tuple[str, str] | None) -> None:
        self._judge = judge
        self._trial = trial

    def prepare(self) -> None:
        """Start the child; UserError when its target cannot be imported, or fails in its trial."""
        self._process = self._judge.start(self._trial)

    def serve(self, request: list[tuple[str, str]]) -> list[Verdict]:
        """Check (prompt, completion) pairs."""
        return self._process.run(request)


def find_fault(items: Sequence[tuple[str, str]], reply: Any) -> str | None:
    """What is wrong with a reply to these pairs; None when nothing is."""
    if not isinstance(reply, list) or not all(isinstance(result, Verdict) for result in reply):
        return "it is no list of verdicts"
    return None if len(reply) == len(items) else f"{len(reply)} verdicts for {len(items)} completions"


class VerifierPool:
    """``verifier.processes`` verifier actors. They reserve no CPU: most of the time they wait.

    Args:
        config: of the run.
        trial: what the checks are tried on, see :func:`bgrpo.scoring.judge.trial_of`.
    """

    def __init__(self, config: TrainConfig, trial: tuple[str, str] | None) -> None:
        judge = Judge(config)
        self._timeout_s = config.verifier.timeout_s
        self._processes = config.verifier.processes

        share = node_share(config.verifier.node_resource)

        def spawn() -> ActorHandle:
            return remote_class(VerifierActor).options(num_cpus=0, resources=share).remote(judge, trial)

        limits = PoolLimits(placement_s=config.rollout.placement_s, silence_s=config.watchdog.silence_s)
        self.pool = ActorPool("verifier", config.verifier.processes, limits, spawn, find_fault=find_fault, asks=share)

    async def check(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Check (prompt, completion) pairs on all verifiers at once; results in order."""
        size = max(LEAST_ITEMS_PER_REQUEST, -(-len(items) // self._processes))
        batches = [list(items[i : i + size]) for i in range(0, len(items), size)]
        return [result for results in await all_of([self._check(batch) for batch in batches]) for result in results]

    async def _check(self, batch: list[tuple[str, str]]) -> list[Verdict]:
        # Every check may crash its child once, then run into its time limit, and the child starts again each time.
        limit_s = START_LIMIT_S + len(batch) * (2 * self._timeout_s + RESTART_ALLOWANCE_S)
        return await self.pool.request(batch, weights=None, limit_s=limit_s)


async def all_of(works: list[Any]) -> list[Any]:
    """Results of all coroutines, in order; as soon as one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
