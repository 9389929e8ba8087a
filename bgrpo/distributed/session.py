"""Connecting to Ray, and checking that the cluster has room, before anything starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.errors import UserError


@dataclass(frozen=True, slots=True)
class Demand:
    """One kind of process and what each reserves."""

    name: str
    count: int
    cpus: float
    gpus: float


def training_demand(config: TrainConfig) -> list[Demand]:
    """What a training run reserves. Verifiers and the rollout service reserve nothing: they wait most of the time."""
    rollout, learner = config.rollout, config.learner
    return [
        Demand("learner.workers", learner.workers, learner.cpus_per_worker, learner.gpus_per_worker),
        Demand("rollout.actors", rollout.actors, rollout.cpus_per_actor, rollout.gpus_per_actor),
    ]


def pretraining_demand(config: PretrainConfig) -> list[Demand]:
    """What a supervised run reserves."""
    return [Demand("workers", config.workers, config.cpus_per_worker, config.gpus_per_worker)]


def check_room(demands: list[Demand], resources: dict[str, float]) -> None:
    """Refuse a run that this cluster could never place.

    Args:
        demands: what the run reserves.
        resources: totals of the cluster, as ``ray.cluster_resources()`` gives them.

    Raises:
        UserError: the sum is larger than the cluster; says what is missing and how it adds up.
    """
    missing = []
    for unit, total in (("CPU", resources.get("CPU", 0.0)), ("GPU", resources.get("GPU", 0.0))):
        shares = [(demand, demand.cpus if unit == "CPU" else demand.gpus) for demand in demands]
        needed = sum(demand.count * share for demand, share in shares)
        if needed > total + 1e-9:
            parts = " + ".join(f"{demand.name} {demand.count} × {share:g}" for demand, share in shares if share)
            missing.append(f"{parts} = {needed:g} {unit}, the cluster has {total:g}: {needed - total:g} missing")
    if missing:
        raise UserError(f"the cluster is too small: {'; '.join(missing)}; ask for fewer, or reserve less of each")


@contextmanager
def ray_session(demands: list[Demand]) -> Iterator[None]:
    """Use the cluster we run on (a Ray job, or ``RAY_ADDRESS``), else a private local one that ends with us.

    Raises:
        UserError: no cluster answers at ``RAY_ADDRESS``, or it is too small for ``demands``.
    """
    already = ray.is_initialized()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not already:
        try:
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "local"),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
            )
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}"
            ) from error
    try:
        check_room(demands, ray.cluster_resources())
        yield
    finally:
        if not already:
            ray.shutdown()
