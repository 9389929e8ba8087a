"""The actor that decodes: it answers a request only while it holds the weights that the request names."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ray.actor import ActorHandle

from bgrpo.config import TrainConfig
from bgrpo.config.lora import LoraSection
from bgrpo.distributed.pool.actor_pool import PooledActor, remote_class
from bgrpo.distributed.rollout.weights import Weights
from bgrpo.distributed.session.ray_session import node_share
from bgrpo.groups import Group
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT
from bgrpo.scoring.readable_groups import complete
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    import numpy as np

    from bgrpo.decoding import DecodeSettings
    from bgrpo.decoding.support import EngineName


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Problems to decode. With the weights and the number of threads, its content alone determines the reply.

    Attributes:
        weights: what to decode with.
        problems: whose prompts are completed.
        seeds: one per problem, for sampling.
        settings: how to decode.
    """

    weights: Weights
    problems: list[Problem]
    seeds: list[int]
    settings: DecodeSettings


@dataclass(frozen=True, slots=True)
class RolloutReply:
    """What became of a :class:`RolloutRequest`.

    Attributes:
        weights: what it was decoded with.
        groups: one per problem; completions have their text, and no verdict yet.
        seconds: time taken by decoding.
    """

    weights: Weights
    groups: list[Group]
    seconds: float


class RolloutActor(PooledActor):
    """Holds a policy, loads weights, decodes. See :class:`PooledActor` for what its exceptions mean.

    Args:
        policy: path as in :func:`bgrpo.policies.io.load_policy`; gives architecture and tokenizer.
        precision: of the layers' matrix products.
        threads: torch threads.
        device: ``cpu`` or ``cuda``.
        engine: the tree or the plain path, as ``rollout.engine`` says.
        lora: as ``learner.lora`` says; where it is on, the weights that are loaded are adapters.
    """

    def __init__(
        self,
        policy: str,
        precision: Literal["fp32", "bf16"],
        threads: int,
        device: str,
        engine: EngineName = "auto",
        lora: LoraSection | None = None,
    ) -> None:
        self._policy = policy
        self._lora = lora or LoraSection()
        self._precision = precision
        self._engine_name = engine
        self._threads = threads
        self._device = device
        self._weights: Hashable = None

    def prepare(self) -> None:
        """Load the policy; UserError when it cannot be loaded, or not decoded with."""
        import torch

        from bgrpo.decoding import DecodeEngine
        from bgrpo.learning.replica import replica_of
        from bgrpo.policies.io import load_policy

        torch.set_num_threads(self._threads)
        policy = load_policy(self._policy, self._device)
        self._tokenizer, self._replica = policy.tokenizer, replica_of(policy, self._lora)
        self._engine = DecodeEngine(self._replica.model, precision=self._precision, engine=self._engine_name)

    def load(self, weights: Hashable, buffer: np.ndarray) -> None:
        """Replace the weights; see :mod:`bgrpo.policies.flat_weights` for the buffer."""
        self._weights = None  # nothing may be served if the copy fails half-way
        self._replica.load(buffer)
        self._weights = weights

    def serve(self, request: RolloutRequest) -> RolloutReply:
        """Decode the problems' prompts.

        Raises:
            RuntimeError: the actor holds other weights.
        """
        held = self._weights
        if held != request.weights:
            raise RuntimeError(f"asked for weights {request.weights}, but this rollout actor holds {held}")
        start = time.perf_counter()
        groups = complete(self._engine, self._tokenizer, request.problems, request.settings, request.seeds)
        return RolloutReply(request.weights, groups, time.perf_counter() - start)


def spawn_rollout_actor(config: TrainConfig, cpus: float) -> ActorHandle:
    """Create one rollout actor as the configuration asks, which reserves so many CPUs."""
    rollout = config.rollout
    environment: dict[str, Any] = {**ALLOCATOR_ENVIRONMENT, "OMP_NUM_THREADS": str(rollout.threads)}
    actor_class = remote_class(RolloutActor).options(
        num_cpus=cpus,
        num_gpus=rollout.gpus_per_actor,
        resources=node_share(rollout.node_resource),
        runtime_env={"env_vars": environment},
    )
    device = "cuda" if rollout.gpus_per_actor > 0 else "cpu"
    lora = config.learner.lora
    return actor_class.remote(config.policy.path, rollout.dtype, rollout.threads, device, rollout.engine, lora)
