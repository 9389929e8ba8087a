"""One training run from start to finish: check, start Ray, evaluate, train, evaluate, report."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.display.progress import TrainingProgress
from bgrpo.display.run_report import comparison_table, plot_report
from bgrpo.display.terminal import PlainConsole, progress_bar, table_console
from bgrpo.distributed.rollout.remote import (
    ServiceDecoder,
    ServiceRolloutSource,
    answer,
    in_spite_of_restarts,
    publish_in_spite_of_restarts,
)
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.session.guarded_session import guarded_ray_session
from bgrpo.distributed.session.ray_session import training_demand
from bgrpo.distributed.train.decisions_tail import DecisionsTail
from bgrpo.distributed.train.driving import (
    STOP_FILE,
    Background,
    ask_learners_to_stop,
    fit_workers,
    new_run,
    raise_failure,
    recorded_attempt,
    resumed_run,
    say,
)
from bgrpo.distributed.train.learner_loop import LearnerJob, learner_loop
from bgrpo.distributed.train.learner_watch import describe_learners
from bgrpo.distributed.train.metrics_tail import MetricsTail
from bgrpo.distributed.watch.watchdog import Watchdog
from bgrpo.errors import Stopped, UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation, Measures, evaluate
from bgrpo.learning.learner_state import policy_folder, training_store
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.io import LoadedPolicy, load_policy, save_policy
from bgrpo.runs.budget import Spent, is_spent
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.learning_signal import SignalWatch, conclusions, steps_without_update
from bgrpo.runs.mlflow_tracking import Tracker, open_command, tracking_uri
from bgrpo.runs.preparation import (
    Preparation,
    check_input,
    check_same_input,
    checkpoint_room,
    load_problems,
    record_input,
    save_problems,
)
from bgrpo.runs.run_folder import ROOM, RunFolder, check_place, flatten, write_atomically
from bgrpo.runs.samples import sample_table
from bgrpo.runs.stopping import STOPPED_STATUS, StopSignals, stop_signals
from bgrpo.scoring.attempts import trial_of
from bgrpo.scoring.failed_checks import failures_of_steps

POLL_S = 0.25
START_S = 180.0
WATCHDOG_ANSWER_S = 10.0
SHUTDOWN_S = 5.0

OnStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder.
        stopped: True when it was asked to stop before its last step; its newest checkpoint is complete.
        comparison: before and after on the test problems; None when not asked for, or stopped.
        tracking_uri: where MLflow recorded it; None when it did not.
        steps_without_update: steps that had nothing to learn from.
        conclusions: what kept it from learning, see :func:`bgrpo.runs.learning_signal.conclusions`.
    """

    folder: RunFolder
    stopped: bool
    comparison: EvaluationComparison | None
    tracking_uri: str | None
    steps_without_update: int
    conclusions: list[str]


def train_and_announce(config: TrainConfig, config_name: str | None, resume: bool, as_json: bool) -> int:
    """What ``bgrpo train`` does; arguments as of :func:`run_training`. Returns the exit status."""
    console = table_console(stderr=as_json)
    result = run_training(config, config_name, resume, console)
    if as_json:
        print(json.dumps(summary(result)))
    else:
        announce(result, config, console)
    return STOPPED_STATUS if result.stopped else 0


def run_training(
    config: TrainConfig,
    config_name: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    tags: Mapping[str, str] | None = None,
    on_step: OnStep | None = None,
) -> RunResult:
    """Train as ``config`` says, on the cluster we run on or on a local Ray.

    Args:
        config: of the run; on resume, ``run.dir`` and ``run.name`` say which.
        config_name: part of a new run's default name.
        resume: go on with an existing run from its newest complete checkpoint.
        console: for the progress display.
        tags: of the MLflow run, besides those that every run has.
        on_step: called with each training step and its metrics, soon after a learner wrote them.

    Raises:
        UserError: bad input, before any process starts; or a divergence, a full disk.
        RunError: the run failed; the message holds the first cause.
        LostRunError: the run's folder was removed, or another process took it over.
        Stopped: a signal came before there was a run, or a second Ctrl-C.
    """
    console = console or PlainConsole()
    with stop_signals() as signals:
        if resume and (done := _finished(config)) is not None:
            say(console, f"run {done.folder.name} has finished: nothing is left to do")
            return done
        with _own(config, config_name, resume, console) as (folder, prepared):
            result: RunResult | None = None
            with recorded_attempt(folder, resume, signals, console) as attempt:
                say(console, "starting Ray")
                with guarded_ray_session(training_demand(config), signals):
                    attempt.begun = True
                    say(console, f"run {folder.name} in {folder.path}")
                    result = _Run(config, folder, prepared, console, tags or {}, on_step, signals).go()
                    attempt.ended = "stopped" if result.stopped else "finished"
            return result or _result(config, folder, stopped=True)


@contextmanager
def _own(
    config: TrainConfig, config_name: str | None, resume: bool, console: Console
) -> Iterator[tuple[RunFolder, Preparation]]:
    """The folder of the run, which is nobody else's meanwhile, and its input: everything is checked here."""
    if resume:
        with resumed_run(config, console) as folder:
            with progress_bar("reading problems") as show:
                prepared = check_input(config, load_problems(folder), show)
            check_same_input(folder, prepared.policy)
            for note in prepared.notes:
                say(console, note)
            training_store(config, folder).latest(lambda line: say(console, line))
            folder.metrics()  # says which lines are damaged
            steps = folder.load_config(TrainConfig).steps
            if config.steps != steps and config.learner.schedule != "constant":
                say(
                    console,
                    f"steps={config.steps}, where the run had {steps}: its {config.learner.schedule} schedule of the "
                    f"learning rate is stretched over {config.steps} steps from here on",
                )
            folder.resume(config)
            yield folder, prepared
        return
    check_place(config.run.dir, config.run.name)
    with progress_bar("reading problems") as show:
        prepared = check_input(config, None, show)
    for note in prepared.notes:
        say(console, note)
    check_place(config.run.dir, config.run.name, room=ROOM + checkpoint_room(prepared.policy))

    def fill(folder: RunFolder) -> None:
        save_problems(prepared.splits, folder)
        record_input(folder, prepared.policy)

    with new_run(config, config_name, fill) as folder:
        yield folder, prepared


def _finished(config: TrainConfig) -> RunResult | None:
    """The result of a run that has nothing left to do; None for any other."""
    folder = RunFolder.open(config.run.dir, str(config.run.name))
    if folder.status != "finished" or not folder.policy.is_dir():
        return None
    if not is_spent(config, _spent(training_store(config, folder))):
        return None
    comparison = None
    if config.evaluation.final:
        try:
            comparison = EvaluationComparison.load(folder.evaluation_path)
        except UserError:
            return None  # to be made again
    return _result(config, folder, False, comparison)


def _result(
    config: TrainConfig, folder: RunFolder, stopped: bool, comparison: EvaluationComparison | None = None
) -> RunResult:
    """What a run left behind, as its folder says."""
    recorded = config.tracking.enabled and folder.info().get("mlflow_run_id")
    uri = tracking_uri(config.tracking, config.run.dir) if recorded else None
    steps = folder.metrics()
    return RunResult(folder, stopped, comparison, uri, steps_without_update(config, steps), conclusions(config, steps))


def _spent(store: CheckpointStore) -> Spent:
    """What a run has spent up to its newest checkpoint."""
    newest = store.latest()
    if newest is None:
        return Spent()
    return replace(Spent.from_metrics(store.metrics(newest)), steps=CheckpointStore.step_of(newest))


class _Run:
    """The parts of one attempt at a run, in the order in which :meth:`go` uses them."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        prepared: Preparation,
        console: Console,
        tags: Mapping[str, str],
        on_step: OnStep | None,
        signals: StopSignals,
    ) -> None:
        self._signals = signals
        self._config = config
        self._folder = folder
        self._prepared = prepared
        self._console = console
        self._tags = tags
        self._on_step = on_step
        self._store = training_store(config, folder)
        (folder.path / STOP_FILE).unlink(missing_ok=True)  # of an earlier attempt
        self._started = time.time()
        self._tokenizer = prepared.policy.tokenizer
        self._doing, self._learners = "waiting for a rollout actor and a verifier", 0
        stall_s = config.watchdog.stall_s
        self._watchdog = Watchdog(stall_s, stall_s, self._tell_stall)

    def go(self) -> RunResult:
        config, folder = self._config, self._folder
        tracker = self._start_tracking()
        status = "FAILED"
        self._tell_start(f"rollout actors ({config.rollout.actors}) and verifiers ({config.verifier.processes})")
        settings = decode_settings(config, self._tokenizer)
        vocabulary = self._prepared.policy.model.config.vocab_size
        name = f"{folder.name}-{uuid.uuid4().hex[:12]}"  # no service that an earlier attempt left is in the way
        trial = trial_of(self._prepared.splits.train)
        self._service = start_service(config, settings, vocabulary, name, folder.name, trial)
        folder.update(service=name)
        try:
            with self._watchdog:
                limit_s = START_S + config.rollout.placement_s
                in_spite_of_restarts(lambda: answer(self._service.ready.remote(limit_s), limit_s + 30), limit_s)
                before = self._evaluate_before()
                stopped = self._train(tracker)
                comparison = None
                if not stopped:
                    self._export_policy()
                    if before is not None:
                        comparison = EvaluationComparison(before, self._evaluate_after(), config.seed)
                        folder.check_owner()
                        comparison.save(folder.evaluation_path)
            steps = folder.metrics()
            if not stopped:
                plot_report(config, steps, comparison, folder.name, folder.report_path)
                self._record_products(tracker, comparison)
            status = "KILLED" if stopped else "FINISHED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)  # type: ignore[arg-type]
            with suppress(RayActorError, GetTimeoutError):  # gone, or it ends with us; what made us end is raised
                ray.get(self._service.shutdown.remote(), timeout=SHUTDOWN_S)
        return _result(config, folder, stopped, comparison)

    def _start_tracking(self) -> Tracker:
        config, folder = self._config, self._folder
        params = flatten(config.model_dump(mode="json"))
        tags = {"algorithm": config.algorithm, "seed": str(config.seed), "run_folder": folder.name, **self._tags}
        known = folder.info().get("mlflow_run_id")
        tracker = Tracker.start(config.tracking, config.run.dir, folder.name, params, tags, run_id=known)
        folder.update(mlflow_run_id=tracker.run_id or known)
        return tracker

    def _evaluate(self, policy: LoadedPolicy, version: int, label: str) -> Evaluation:
        """Measure weights on the test problems, with the rollout actors."""
        config = self._config
        source = ServiceRolloutSource(self._service, config)
        publish = partial(publish_in_spite_of_restarts, source, version, policy.model)
        publish()
        decode = ServiceDecoder(self._service, config, version, policy.tokenizer, publish_again=publish)
        section = config.evaluation
        self._begin(f"evaluating {label} training")
        with self._console.status(self._doing) as status:

            def show(done: int, total: int) -> None:
                self._watchdog.moved()
                if (self._folder.path / STOP_FILE).exists():
                    raise Stopped("the file stop", STOPPED_STATUS)
                status.update(f"{self._doing}: {done / total:.0%}")

            evaluation = evaluate(
                decode,
                self._prepared.splits.test,
                section.beam_widths,
                section.samples,
                config.seed,
                Measures.of(config),
                on_progress=show,
            )
        for line in evaluation.failures():
            self._console.print(f"{self._doing}: {line}", soft_wrap=True, highlight=False, markup=False)
        return evaluation

    def _evaluate_before(self) -> Evaluation | None:
        """The starting policy on the test problems; measured once, then kept in the run's folder."""
        if not self._config.evaluation.final:
            return None
        kept = self._folder.path / "evaluation-before.json"
        if kept.exists():
            try:
                return Evaluation.load(kept)
            except UserError as error:
                say(self._console, f"{error}: measuring the starting policy again")
        before = self._evaluate(self._prepared.policy, 0, "before")
        self._folder.check_owner()
        write_atomically(kept, json.dumps(before.to_dict()))
        return before

    def _evaluate_after(self) -> Evaluation:
        return self._evaluate(load_policy(str(self._folder.policy)), _spent(self._store).steps, "after")

    def _train(self, tracker: Tracker) -> bool:
        """Run the learners to the last step, showing and recording what they write; True when asked to stop before."""
        spent = _spent(self._store)
        if is_spent(self._config, spent):
            return False
        start = spent.steps
        self._tell_start(f"learners ({self._config.learner.workers}), then step {start + 1}")
        self._begin(f"after step {start}", self._config.learner.workers)
        learners = Background(self._fit)
        tail = MetricsTail(self._folder.metrics_path, start)
        decisions, signal = DecisionsTail(self._service), SignalWatch(self._config)
        step_s = 0.0

        def ask(name: str) -> float:
            saved = self._store.newest_step()
            return ask_learners_to_stop(self._folder, name, tail.last_step, saved, step_s, self._console)

        with (
            TrainingProgress(self._config.steps, self._folder.name, start, console=self._console) as progress,
            self._signals.gently(ask),
        ):
            finished = False
            while not finished:
                finished = learners.wait(POLL_S)
                self._signals.check()
                self._folder.check_owner()
                for step, metrics, details in tail.new_steps():
                    progress.update(step, metrics, details)
                    for line in signal.note(step, metrics):
                        progress.note(line)
                    tracker.log(step, metrics)
                    step_s = metrics.get("seconds/total", step_s)
                    if self._on_step is not None:
                        self._on_step(step, metrics)
                    self._begin(f"after step {step}", self._config.learner.workers)
                for line in decisions.new_lines(time.monotonic()):
                    progress.note(line)
        raise_failure(self._folder.path, self._started, learners.error)
        asked = self._signals.asked is not None or (self._folder.path / STOP_FILE).exists()
        if asked and is_spent(self._config, _spent(self._store)):
            self._signals.raise_asked()
        return asked and not is_spent(self._config, _spent(self._store))

    def _tell_start(self, what: str) -> None:
        self._console.print(f"starting {what}", highlight=False, soft_wrap=True)

    def _begin(self, doing: str, learners: int = 0) -> None:
        self._doing, self._learners = doing, learners
        self._watchdog.moved()

    def _tell_stall(self, silent_s: float) -> None:
        """Say who waits for whom, and what those do that hold up the others."""
        lines = [f"{self._doing}: nothing has come for {silent_s:.0f} s"]
        try:
            lines.append(answer(self._service.stall_report.remote(), WATCHDOG_ANSWER_S))
        except RayError as error:
            lines.append(f"the rollout service does not answer either: {type(error).__name__}")
        if self._learners:
            stall_s = self._config.watchdog.stall_s
            lines.append(describe_learners(self._folder.path, self._learners, stall_s, time.time()))
        say(self._console, "\n".join(lines))

    def _fit(self) -> None:
        config = self._config
        job = LearnerJob(config, self._folder, self._service, self._started)
        demand = next(demand for demand in training_demand(config) if demand.name == "learner.workers")
        failures, silence_s = config.learner.max_failures, config.watchdog.silence_s
        fit_workers(learner_loop, job, demand, self._folder.name, failures, silence_s)

    def _export_policy(self) -> None:
        """The newest checkpoint's policy becomes the run's."""
        newest = self._store.latest()
        if newest is None:
            raise RuntimeError(f"{self._folder.checkpoints}: training ended without a complete checkpoint")
        policy = load_policy(str(policy_folder(newest)))
        self._folder.check_owner()
        save_policy(policy.model, policy.tokenizer, self._folder.policy)

    def _record_products(self, tracker: Tracker, comparison: EvaluationComparison | None) -> None:
        if comparison is not None:
            table = {row.metric: (row.before.mean, row.after.mean) for row in comparison.rows()}
            tracker.log(0, {f"test/{metric}": before for metric, (before, _) in table.items()})
            tracker.log(_spent(self._store).steps, {f"test/{metric}": after for metric, (_, after) in table.items()})
            tracker.artifact(self._folder.evaluation_path)
        tracker.table(sample_table(self._folder), f"samples-to-step-{_spent(self._store).steps}.json")
        for path in (self._folder.config_path, self._folder.report_path):
            tracker.artifact(path)
        tracker.artifact(self._folder.policy, "policy")


def summary(result: RunResult) -> dict[str, Any]:
    """A run's result for machines."""
    folder, comparison = result.folder, result.comparison
    return {
        "run": folder.name,
        "status": "stopped" if result.stopped else "finished",
        "folder": str(folder.path),
        "policy": None if result.stopped else str(folder.policy),
        "report": None if result.stopped else str(folder.report_path),
        "tracking_uri": result.tracking_uri,
        "failed_checks": failures_of_steps(folder.metrics()),
        "steps_without_update": result.steps_without_update,
        "conclusions": result.conclusions,
        "metrics": None
        if comparison is None
        else {
            row.metric: {"before": row.before, "after": row.after, "difference": row.difference}
            for row in comparison.rows()
        },
    }


def announce(result: RunResult, config: TrainConfig, console: Console) -> None:
    """The end of a run, for people."""
    folder = result.folder
    if result.stopped:
        say(console, f"stopped; go on with: bgrpo train --resume {folder.path}")
        return
    if result.comparison is not None:
        console.print(comparison_table(result.comparison, f"{folder.name}: before and after"))
    for line in failures_of_steps(folder.metrics()):
        console.print(f"training: {line}", soft_wrap=True, highlight=False, markup=False)
    lines = [("policy", str(folder.policy)), ("plot", str(folder.report_path)), ("run", str(folder.path))]
    if result.tracking_uri is not None:
        lines.append(("MLflow", open_command(result.tracking_uri)))
    for label, value in lines:
        say(console, f"{label:>7}: {value}")
    for line in result.conclusions:
        say(console, line)
    sys.stdout.flush()
