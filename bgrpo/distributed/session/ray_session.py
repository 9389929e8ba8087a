"""Connecting to Ray, and checking that the cluster has room, before anything starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import ray

from bgrpo.cluster.private_ray import private_ray
from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.distributed.session.cluster_address import cluster_address, joined_ray
from bgrpo.distributed.session.head_watch import head_watch
from bgrpo.distributed.session.node_autoscaler import autoscaler_can_hold
from bgrpo.errors import UserError

NODE_SHARE = 0.001
"""Of a node's own resource, which says what kind of node it is, this is what each process reserves that belongs there:
so little that it never decides how many have room."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One kind of process and what each reserves.

    Attributes:
        name: key of the configuration that says how many.
        count: how many.
        cpus: of each.
        gpus: of each.
        others: further Ray resources of each, see :func:`node_share`.
    """

    name: str
    count: int
    cpus: float
    gpus: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def reserved(self) -> dict[str, float]:
        """What each process reserves, by the name of the resource; nothing that is zero."""
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.others}
        return {name: share for name, share in every.items() if share}


def node_share(resource: str | None) -> dict[str, float]:
    """What a process reserves of the resource that only nodes of its kind have; nothing without one."""
    return {} if resource is None else {resource: NODE_SHARE}


def training_demand(config: TrainConfig) -> list[Demand]:
    """What a training run reserves at least.

    Verifiers and the rollout service reserve no CPU, because they wait most of the time.
    """
    rollout, learner, verifier = config.rollout, config.learner, config.verifier
    name = "rollout.actors" if rollout.min_actors is None else "rollout.min_actors"
    learners = learner.workers, learner.cpus_per_worker, learner.gpus_per_worker, node_share(learner.node_resource)
    demands = [Demand("learner.workers", *learners), rollout_demand(config, name)]
    if verifier.node_resource is not None:
        share = node_share(verifier.node_resource)
        demands.append(Demand("verifier.processes", verifier.processes, 0.0, 0.0, share))
    if any(part.held_model is not None for part in config.reward.named_parts.values()):
        demands.append(reward_demand(config))
    return demands


def reward_demand(config: TrainConfig) -> Demand:
    """What the actors of reward models reserve."""
    actors = config.reward_model
    share = node_share(actors.node_resource)
    return Demand("reward_model.processes", actors.processes, actors.cpus_per_actor, actors.gpus_per_actor, share)


def rollout_demand(config: TrainConfig, name: str = "rollout.min_actors") -> Demand:
    """What the fewest rollout actors reserve."""
    rollout = config.rollout
    share = node_share(rollout.node_resource)
    return Demand(name, rollout.least_actors, rollout.cpus_per_actor, rollout.gpus_per_actor, share)


def pretraining_demand(config: PretrainConfig) -> list[Demand]:
    """What a supervised run reserves."""
    return [Demand("workers", config.workers, config.cpus_per_worker, config.gpus_per_worker)]


def missing_room(demands: list[Demand], resources: Mapping[str, float]) -> str:
    """What this cluster lacks for all of it at once, with the sum that says so; empty when it lacks nothing.

    Args:
        demands: what the run reserves.
        resources: totals of the cluster, as ``ray.cluster_resources()`` gives them.
    """
    missing = []
    for unit in dict.fromkeys(unit for demand in demands for unit in demand.reserved):
        shares = [(demand, demand.reserved[unit]) for demand in demands if unit in demand.reserved]
        needed, total = sum(demand.count * share for demand, share in shares), resources.get(unit, 0.0)
        if needed > total + 1e-9:
            parts = " + ".join(f"{demand.name} {demand.count} × {share:g}" for demand, share in shares)
            missing.append(f"{parts} = {needed:g} {unit}, the cluster has {total:g}: {needed - total:g} missing")
    return "; ".join(missing)


def check_room(
    demands: list[Demand],
    resources: Mapping[str, float],
    can_grow: Callable[[Sequence[Mapping[str, float]]], bool] | None = None,
) -> None:
    """Refuse a run that this cluster could never place.

    Args:
        demands: what the run reserves.
        resources: totals of the cluster, as ``ray.cluster_resources()`` gives them.
        can_grow: whether an autoscaler could make room for such processes; None where there is none.

    Raises:
        UserError: the sum is larger than the cluster; says what is missing and how it adds up.
    """
    missing = missing_room(demands, resources)
    if not missing:
        return
    if can_grow is None:
        raise UserError(f"the cluster is too small: {missing}; ask for fewer, or reserve less of each")
    if not can_grow([demand.reserved for demand in demands for _ in range(demand.count)]):
        raise UserError(
            f"the cluster is too small: {missing}, and it has no autoscaler that could add nodes for all of that; "
            "ask for fewer, reserve less of each, or let the autoscaler add more nodes"
        )


def check_room_here(demands: list[Demand]) -> None:
    """:func:`check_room` on the cluster that we are connected to, which may have to grow unless it is our own."""
    check_room(demands, ray.cluster_resources(), None if cluster_address() is None else autoscaler_can_hold)


@contextmanager
def ray_session(demands: list[Demand]) -> Iterator[None]:
    """Use the cluster we run on (a Ray job, or ``RAY_ADDRESS``), else a private local one that ends with us.

    When its head is lost, that is said on stderr, see :mod:`bgrpo.distributed.session.head_watch`.

    Raises:
        UserError: no cluster answers at ``RAY_ADDRESS``, or it is too small for ``demands``.
        RunError: a local Ray did not start.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with ExitStack() as ends:
        if not ray.is_initialized():
            address = cluster_address()
            ends.enter_context(private_ray() if address is None else joined_ray(address))
            ends.enter_context(head_watch(ray.get_runtime_context().gcs_address, _say))
        check_room_here(demands)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
