"""Supervised training as a Ray Train job: check, start Ray, train, export the best policy."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray.train
from rich.console import Console

from bgrpo.config import PretrainConfig
from bgrpo.display.progress import PRETRAINING_COLUMNS, TrainingProgress
from bgrpo.display.terminal import PlainConsole
from bgrpo.distributed.session.cluster_address import cluster_address
from bgrpo.distributed.session.guarded_session import guarded_ray_session
from bgrpo.distributed.session.ray_session import pretraining_demand
from bgrpo.distributed.train.driving import WorkersRun, raise_failure
from bgrpo.distributed.train.failures import final_failure, is_owned, record_failure
from bgrpo.distributed.train.learner_watch import crash_record
from bgrpo.errors import Stopped
from bgrpo.policies.io import LoadedPolicy, check_target
from bgrpo.pretraining.pretrain import export_best, make_data, pretraining_store, train
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.mlflow_tracking import Tracker, check_tracking, open_command, tracking_uri
from bgrpo.runs.preparation import check_policy
from bgrpo.runs.run_folder import RunFolder, check_place, flatten
from bgrpo.runs.same_input import Inputs, check_same_input, policy_input, record_input
from bgrpo.runs.stopping import StopSignals, status_of, stop_signals
from bgrpo.training.metrics_tail import MetricsTail
from bgrpo.training.run_attempt import (
    STOP_FILE,
    Background,
    ask_learners_to_stop,
    new_run,
    recorded_attempt,
    resumed_run,
    say,
    say_begins_again,
)
from bgrpo.waits import waiting

POLL_S = 0.25
NOT_OF_THE_RESULT = ("run.", "tracking.")  # left out of the command that makes a policy again


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What a supervised run left behind.

    Attributes:
        folder: the run's folder.
        policy: directory of the best policy; None when the run was asked to stop before its last step.
        tracking_uri: where MLflow recorded it; None when it did not.
    """

    folder: RunFolder
    policy: Path | None
    tracking_uri: str | None


@dataclass(frozen=True, slots=True)
class PretrainJob:
    """What a worker needs to know.

    Attributes:
        config: the run's configuration.
        folder: the run's folder, visible to every worker.
        started: seconds since 1970 when this attempt at the run began; earlier failures are of other attempts.
    """

    config: PretrainConfig
    folder: RunFolder
    started: float


def pretrain_and_announce(config: PretrainConfig, config_name: str | None, overrides: list[str], resume: bool) -> int:
    """What ``bgrpo pretrain`` does; returns the exit status.

    Args:
        config: of the run, as for :func:`run_pretrain`.
        config_name: what the user gave as ``--config``.
        overrides: what the user gave besides, for the command in the model card.
        resume: go on with an existing run.
    """
    console = PlainConsole()
    named = ["--config", config_name] if config_name is not None else []
    remembered = [override for override in overrides if not override.startswith(NOT_OF_THE_RESULT)]
    command = shlex.join(["bgrpo", "pretrain", *named, *remembered])
    with stop_signals() as signals:
        result = run_pretrain(config, config_name, resume, command, console)
    if result.policy is None:
        say(console, f"stopped; go on with: bgrpo pretrain --resume {result.folder.path}")
        return status_of(signals.asked)
    say(console, f"policy: {result.policy}")
    if result.tracking_uri is not None:
        say(console, f"MLflow: {open_command(result.tracking_uri)}")
    return 0


def run_pretrain(
    config: PretrainConfig,
    config_name: str | None = None,
    resume: bool = False,
    command: str = "bgrpo pretrain --config pretrain.yaml, with the configuration below in that file",
    console: Console | None = None,
) -> PretrainResult:
    """Train as ``config`` says, on the cluster we run on or on a local Ray.

    Args:
        config: of the run; on resume, ``run.dir`` and ``run.name`` say which.
        config_name: part of a new run's default name.
        resume: go on with an existing run from its newest complete checkpoint.
        command: makes the policy again; for the model card of a new run.
        console: for the progress display.

    Raises:
        UserError: bad input, before any process starts; or a divergence, a full disk.
        RunError: the run failed; the message holds the first cause.
    """
    console = console or PlainConsole()
    with stop_signals() as signals:
        cluster_address()  # a wrong one is told before anything is made
        check_tracking(config.tracking, config.run.dir)
        if config.out is not None:
            check_target(Path(config.out))
        if resume and (done := _finished(config)) is not None:
            say(console, f"run {done.folder.name} has finished: nothing is left to do")
            return done
        with _own(config, config_name, resume, command, console) as (folder, config):
            result: PretrainResult | None = None
            with recorded_attempt(folder, resume, signals, console, "bgrpo pretrain") as attempt:
                say(console, "starting Ray")
                with guarded_ray_session(pretraining_demand(config), signals):
                    attempt.begun = True
                    say(console, f"run {folder.name} in {folder.path}")
                    result = _go(config, folder, console, signals)
                    attempt.ended = "stopped" if result.policy is None else "finished"
            return result or PretrainResult(folder, None, None)


@contextmanager
def _own(
    config: PretrainConfig, config_name: str | None, resume: bool, command: str, console: Console
) -> Iterator[tuple[RunFolder, PretrainConfig]]:
    """The folder of the run, which is nobody else's meanwhile, and its configuration with the steps known.

    Everything is checked here.
    """
    if resume:
        with resumed_run(config, console) as folder:
            check_same_input(folder, _inputs(None if config.policy.path is None else check_policy(config.policy.path)))
            with waiting("the newest checkpoint to be checked, byte by byte"):
                newest = pretraining_store(config, folder.path).latest(lambda line: say(console, line))
            say_begins_again(folder, newest, console)
            steps = folder.load_config(PretrainConfig).steps
            if config.steps != steps:
                say(
                    console,
                    f"steps={config.steps}, where the run had {steps}: its schedule of the learning rate is stretched "
                    f"over {config.steps} steps from here on",
                )
            folder.resume(config)
            yield folder, config
        return
    check_place(config.run.dir, config.run.name)
    with console.status("making the training data"), waiting("the training data"):
        data = make_data(config)
    config = config.with_steps(len(data.train))
    for note in data.notes:
        say(console, note)
    if config.epochs is not None:
        say(console, f"epochs={config.epochs:g} of {len(data.train):,} lines: {config.steps:,} steps")
    if config.warmup_steps >= config.steps:
        say(console, f"note: warmup_steps={config.warmup_steps} are not over after {config.steps} steps: set fewer")

    def fill(folder: RunFolder) -> None:
        data.save(folder.path)
        record_input(folder, _inputs(data.start.policy))
        folder.update(command=command, problems=data.counts)

    with new_run(config, config_name, fill) as folder:
        yield folder, config


def _inputs(policy: LoadedPolicy | None) -> Inputs:
    return {} if policy is None else {"policy": policy_input(policy)}


def _finished(config: PretrainConfig) -> PretrainResult | None:
    """The result of a run that has nothing left to do; None for any other."""
    folder = RunFolder.open(config.run.dir, str(config.run.name))
    policy = Path(config.out) if config.out else folder.policy
    newest = pretraining_store(config, folder.path).newest_step()
    if folder.status != "finished" or newest < config.steps or not policy.is_dir():
        return None
    uri = tracking_uri(config.tracking, config.run.dir) if folder.info().get("mlflow_run_id") else None
    return PretrainResult(folder, policy, uri)


def _go(config: PretrainConfig, folder: RunFolder, console: Console, signals: StopSignals) -> PretrainResult:
    (folder.path / STOP_FILE).unlink(missing_ok=True)  # of an earlier attempt
    params = flatten(config.model_dump(mode="json"))
    known = folder.info().get("mlflow_run_id")
    tags = {"algorithm": "supervised", "seed": str(config.seed), "run_folder": folder.name}
    tracker = Tracker.start(config.tracking, config.run.dir, folder.name, params, tags, run_id=known)
    folder.update(mlflow_run_id=tracker.run_id or known)
    outcome = "FAILED"
    try:
        stopped = _train(config, folder, tracker, console, signals)
        folder.check_owner()
        policy = None if stopped else export_best(config, folder.path, folder.info()["command"])
        tracker.artifact(folder.config_path)
        if policy is not None:
            tracker.artifact(policy, "policy")
        outcome = "KILLED" if stopped else "FINISHED"
    except Stopped:
        outcome = "KILLED"
        raise
    finally:
        tracker.finish(outcome)  # type: ignore[arg-type]
    return PretrainResult(folder, policy, tracking_uri(config.tracking, config.run.dir) if tracker.run_id else None)


def _train(config: PretrainConfig, folder: RunFolder, tracker: Tracker, console: Console, signals: StopSignals) -> bool:
    """Run the workers to the last step, showing and recording what they write; True when asked to stop before."""
    started = time.time()
    store = pretraining_store(config, folder.path)
    newest = store.latest()
    start = 0 if newest is None else CheckpointStore.step_of(newest)
    job = PretrainJob(config, folder, started)
    (demand,) = pretraining_demand(config)
    run = WorkersRun(pretrain_loop, job, demand, folder.name, config.max_failures)
    tail = MetricsTail(folder.metrics_path, start)

    def ask(name: str) -> float:
        return ask_learners_to_stop(folder, name, tail.last_step, store.newest_step(), 0.0, console)

    with (
        TrainingProgress(config.steps, folder.name, start, PRETRAINING_COLUMNS, console) as progress,
        signals.gently(ask),
        Background(run.fit, run.end) as workers,
    ):
        finished = False
        while not finished:
            finished = workers.wait(POLL_S)
            folder.check_owner()
            for step, metrics, _ in tail.new_steps():
                progress.update(step, metrics)
                tracker.log(step, metrics)
            signals.check()  # knows the steps that have ended by now
    raise_failure(folder.path, started, workers.error)
    if tail.last_step >= config.steps:
        signals.raise_asked()
    asked = signals.asked is not None or (folder.path / STOP_FILE).exists()
    return asked and tail.last_step < config.steps


def pretrain_loop(settings: dict[str, PretrainJob]) -> None:
    """What each Ray Train worker runs: train from the newest complete checkpoint on; called again after a loss.

    A failure that would come again (a user's error, a divergence) is recorded and not tried again.
    """
    job = settings["job"]
    rank = ray.train.get_context().get_world_rank()
    folder = job.folder
    if final_failure(folder.path, job.started) is not None or not is_owned(folder):
        return
    try:
        with crash_record(folder.path, rank):
            if rank == 0:
                newest = pretraining_store(job.config, folder.path).latest()
                folder.truncate_after(0 if newest is None else CheckpointStore.step_of(newest))
            should_stop = (folder.path / STOP_FILE).exists
            train(job.config, folder.path, _MetricsWriter(folder), should_stop, folder.check_owner)
    except Exception as error:
        record_failure(folder.path, error, rank)
        raise


class _MetricsWriter:
    """Appends each record to the run's ``metrics.jsonl``, which the driver follows."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __call__(self, metrics: dict[str, float]) -> None:
        self._folder.append_metrics(int(metrics["step"]), metrics)
