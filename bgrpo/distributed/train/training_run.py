"""A training run on Ray: rollout actors, verifiers and reward actors behind one service, learners in Ray Train."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.distributed.rollout.remote import (
    ServiceDecoder,
    ServiceRolloutSource,
    answer,
    in_spite_of_restarts,
    publish_in_spite_of_restarts,
)
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.session.cluster_address import cluster_address
from bgrpo.distributed.session.guarded_session import guarded_ray_session
from bgrpo.distributed.session.ray_session import training_demand
from bgrpo.distributed.train.decisions_tail import DecisionsTail
from bgrpo.distributed.train.driving import WorkersRun, raise_failure
from bgrpo.distributed.train.learner_loop import LearnerJob, learner_loop
from bgrpo.distributed.train.learner_watch import describe_learners
from bgrpo.evaluation.decoders import Decode
from bgrpo.learning.replica import weights_of
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.stopping import StopSignals
from bgrpo.scoring.attempts import trial_of
from bgrpo.training import driver
from bgrpo.training.driver import OnStep
from bgrpo.training.machinery import Machinery, RunParts, Workers
from bgrpo.training.owned_run import WriteGiven
from bgrpo.training.run_result import RunResult

START_S = 180.0
WATCHDOG_ANSWER_S = 10.0
SHUTDOWN_S = 5.0
STARTING_SHUTDOWN_S = 1.0  # a service that is still starting does not answer


def train_and_announce(config: TrainConfig, config_name: str | None, resume: bool, as_json: bool) -> int:
    """What ``bgrpo train`` does; arguments as of :func:`run_training`. Returns the exit status."""
    return driver.train_and_announce(RayMachinery(), config, config_name, resume, as_json)


def run_training(
    config: TrainConfig,
    config_name: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    tags: Mapping[str, str] | None = None,
    on_step: OnStep | None = None,
    write_given: WriteGiven | None = None,
) -> RunResult:
    """Train on the cluster we run on or on a local Ray: :func:`bgrpo.training.driver.run_training` there."""
    return driver.run_training(RayMachinery(), config, config_name, resume, console, tags, on_step, write_given)


class RayMachinery(Machinery):
    """The cluster we run on, or a private Ray of this machine."""

    begins = "Ray"

    def check(self, config: TrainConfig) -> None:
        """Whether ``RAY_ADDRESS`` is an address; how much room there is, the session tells."""
        cluster_address()

    @contextmanager
    def session(self, config: TrainConfig, signals: StopSignals, console: Console) -> Iterator[None]:
        """See :func:`bgrpo.distributed.session.guarded_session.guarded_ray_session`."""
        with guarded_ray_session(training_demand(config), signals):
            yield

    def start(self, run: RunParts) -> Workers:
        """The rollout service, whose actors start by themselves."""
        return RayWorkers(run)


class RayWorkers(Workers):
    """The rollout service of a run, and its learners."""

    def __init__(self, run: RunParts) -> None:
        config, policy = run.config, run.prepared.policy
        self._run = run
        self.begins = f"rollout actors ({config.rollout.actors}) and verifiers ({config.verifier.processes})"
        self.learners = f"learners ({config.learner.workers})"
        settings = decode_settings(config, policy.tokenizer)
        name = f"{run.folder.name}-{uuid.uuid4().hex[:12]}"  # no service that an earlier attempt left is in the way
        trial = trial_of(run.prepared.splits.train)
        self._service: Any = start_service(
            config, settings, policy.model.config.vocab_size, name, run.folder.name, trial
        )
        self._has_answered = False
        self._decisions = DecisionsTail(self._service)
        demand = next(demand for demand in training_demand(config) if demand.name == "learner.workers")
        failures, silence_s = config.learner.max_failures, config.watchdog.silence_s
        job = LearnerJob(config, run.folder, self._service, run.started)
        self._learners = WorkersRun(learner_loop, job, demand, run.folder.name, failures, silence_s)
        run.folder.update(service=name)

    def wait(self) -> None:
        """Until one actor of each pool is up."""
        limit_s = START_S + self._run.config.rollout.placement_s
        in_spite_of_restarts(lambda: answer(self._service.ready.remote(limit_s), limit_s + 30), limit_s)
        self._has_answered = True

    def decoder(self, policy: LoadedPolicy, version: int) -> Decode:
        """On the rollout actors; the weights are published again where the service was lost."""
        source = ServiceRolloutSource(self._service, self._run.config)
        weights = weights_of(policy, self._run.config.learner.lora)
        publish = partial(publish_in_spite_of_restarts, source, version, weights)
        publish()
        return ServiceDecoder(self._service, self._run.config, version, policy.tokenizer, publish_again=publish)

    def learn(self) -> None:
        """In Ray Train workers, which are started again when one is lost."""
        self._learners.fit()

    def end_learning(self) -> None:
        """By Ray Train's controller, and with it."""
        self._learners.end()

    def news(self) -> Sequence[str]:
        """Why the pool of rollout actors grew or shrank."""
        return list(self._decisions.new_lines(time.monotonic()))

    def why_silent(self, learning: bool) -> str:
        """The service's report, and what the learners have written about themselves."""
        lines = []
        try:
            lines.append(answer(self._service.stall_report.remote(), WATCHDOG_ANSWER_S))
        except RayError as error:
            lines.append(f"the rollout service does not answer either: {type(error).__name__}")
        if learning:
            config, now = self._run.config, time.time()
            lines.append(describe_learners(self._run.folder.path, config.learner.workers, config.watchdog.stall_s, now))
        return "\n".join(lines)

    def raise_failure(self, error: BaseException | None) -> None:
        """See :func:`bgrpo.distributed.train.driving.raise_failure`."""
        raise_failure(self._run.folder.path, self._run.started, error)

    def close(self) -> None:
        """The service ends its actors; one that is lost, or hangs, ends with this process."""
        with suppress(RayActorError, GetTimeoutError):  # what made us end is raised
            ray.get(self._service.shutdown.remote(), timeout=SHUTDOWN_S if self._has_answered else STARTING_SHUTDOWN_S)
