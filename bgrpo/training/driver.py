"""One training run from start to finish: check, evaluate, train, evaluate, report. Where the work is done is
:mod:`bgrpo.training.machinery`'s."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.display.progress import TrainingProgress
from bgrpo.display.run_report import plot_report
from bgrpo.display.terminal import PlainConsole, table_console
from bgrpo.display.validation_picture import has_validation, plot_validations
from bgrpo.errors import Stopped, UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation, Measures, evaluate
from bgrpo.evaluation.win_rate import with_win_rate
from bgrpo.learning.learner_state import policy_folder, training_store
from bgrpo.policies.io import LoadedPolicy, load_policy, save_policy
from bgrpo.runs.budget import is_spent
from bgrpo.runs.kept_policies import forget_policy, record_policy
from bgrpo.runs.learning_signal import SignalWatch
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.runs.run_folder import RunFolder, flatten
from bgrpo.runs.samples import sample_table
from bgrpo.runs.stopping import STOPPED_STATUS, StopSignals, status_of, stop_signals
from bgrpo.tasks.base import Problem
from bgrpo.training.machinery import Machinery, RunParts
from bgrpo.training.metrics_tail import MetricsTail
from bgrpo.training.owned_run import WriteGiven, new_owned, resumed_owned
from bgrpo.training.run_attempt import (
    STOP_FILE,
    Background,
    ask_learners_to_stop,
    recorded_attempt,
    say,
)
from bgrpo.training.run_result import RunResult, announce, result_of, spent_so_far, summary
from bgrpo.training.watchdog import Watchdog
from bgrpo.waits import waiting

POLL_S = 0.25

OnStep = Callable[[int, Mapping[str, float]], None]


def train_and_announce(
    machinery: Machinery, config: TrainConfig, config_name: str | None, resume: bool, as_json: bool
) -> int:
    """What ``bgrpo train`` does; arguments as of :func:`run_training`. Returns the exit status."""
    console = table_console(stderr=as_json)
    with stop_signals() as signals:
        result = run_training(machinery, config, config_name, resume, console)
    if as_json:
        print(json.dumps(summary(result)))
    else:
        announce(result, config, console, machinery.command)
    return status_of(signals.asked) if result.stopped else 0


def run_training(
    machinery: Machinery,
    config: TrainConfig,
    config_name: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    tags: Mapping[str, str] | None = None,
    on_step: OnStep | None = None,
    write_given: WriteGiven | None = None,
) -> RunResult:
    """Train as ``config`` says.

    Args:
        machinery: where the work is done.
        config: of the run; on resume, ``run.dir`` and ``run.name`` say which.
        config_name: part of a new run's default name.
        resume: go on with an existing run from its newest complete checkpoint.
        console: for the progress display.
        tags: of the MLflow run, besides those that every run has.
        on_step: called with each training step and its metrics, soon after a learner wrote them.
        write_given: of a new run that is made from objects.

    Raises:
        UserError: bad input, before any process starts; or a divergence, a full disk.
        RunError: the run failed; the message holds the first cause.
        LostRunError: the run's folder was removed, or another process took it over.
        Stopped: a signal came before there was a run, or a second Ctrl-C.
    """
    console = console or PlainConsole()
    machinery.check(config)
    with stop_signals() as signals:
        if resume and (done := _finished(config)) is not None:
            say(console, f"run {done.folder.name} has finished: nothing is left to do")
            return done
        owned = resumed_owned(config, console) if resume else new_owned(config, config_name, console, write_given)
        with owned as (config, folder, prepared):
            result: RunResult | None = None
            with recorded_attempt(folder, resume, signals, console, machinery.command) as attempt:
                if machinery.begins:
                    say(console, f"starting {machinery.begins}")
                with machinery.session(config, signals, console):
                    attempt.begun = True
                    say(console, f"run {folder.name} in {folder.path}")
                    run = RunParts(config, folder, prepared, time.time())
                    result = _Run(run, machinery, console, tags or {}, on_step, signals).go()
                    attempt.ended = "stopped" if result.stopped else "finished"
            return result or result_of(config, folder, stopped=True)


def _finished(config: TrainConfig) -> RunResult | None:
    """The result of a run that has nothing left to do; None for any other."""
    folder = RunFolder.open(config.run.dir, str(config.run.name))
    if folder.status != "finished" or not folder.policy.is_dir():
        return None
    if not is_spent(config, spent_so_far(training_store(config, folder))):
        return None
    comparison = None
    if config.evaluation.final:
        try:
            comparison = EvaluationComparison.load(folder.evaluation_path)
        except UserError:
            return None  # to be made again
    return result_of(config, folder, False, comparison)


class _Run:
    """The parts of one attempt at a run, in the order in which :meth:`go` uses them."""

    def __init__(
        self,
        run: RunParts,
        machinery: Machinery,
        console: Console,
        tags: Mapping[str, str],
        on_step: OnStep | None,
        signals: StopSignals,
    ) -> None:
        self._run = run
        self._machinery = machinery
        self._signals = signals
        self._config = run.config
        self._folder = run.folder
        self._console = console
        self._tags = tags
        self._on_step = on_step
        self._store = training_store(run.config, run.folder)
        (run.folder.path / STOP_FILE).unlink(missing_ok=True)  # of an earlier attempt
        self._doing, self._learning = "", False
        stall_s = run.config.watchdog.stall_s
        self._watchdog = Watchdog(stall_s, stall_s, self._tell_stall)

    def go(self) -> RunResult:
        config, folder = self._config, self._folder
        tracker = self._start_tracking()
        status = "FAILED"
        try:
            with closing(self._machinery.start(self._run)) as self._workers:
                self._doing = f"waiting for {self._workers.begins}"
                self._tell_start(self._workers.begins)
                with self._watchdog:
                    with waiting(self._workers.begins):
                        self._workers.wait()
                    before = self._evaluate_before()
                    self._measure_validation_before()
                    stopped = self._train(tracker)
                    comparison = None
                    if not stopped:
                        self._export_policy()
                        if before is not None:
                            after = with_win_rate(self._evaluate_after(), before)
                            comparison = EvaluationComparison(with_win_rate(before, before), after, config.seed)
                            folder.check_owner()
                            comparison.save(folder.evaluation_path)
            if not stopped:
                plot_report(config, folder.metrics(), comparison, folder.name, folder.report_path)
                self._record_products(tracker, comparison)
            status = "KILLED" if stopped else "FINISHED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)  # type: ignore[arg-type]
        return result_of(config, folder, stopped, comparison)

    def _start_tracking(self) -> Tracker:
        config, folder = self._config, self._folder
        params = flatten(config.model_dump(mode="json"))
        tags = {"algorithm": config.algorithm, "seed": str(config.seed), "run_folder": folder.name, **self._tags}
        known = folder.info().get("mlflow_run_id")
        tracker = Tracker.start(config.tracking, config.run.dir, folder.name, params, tags, run_id=known)
        folder.update(mlflow_run_id=tracker.run_id or known)
        return tracker

    def _evaluate(self, policy: LoadedPolicy, version: int, doing: str) -> Evaluation:
        """Measure weights on the test problems."""
        section, measures = self._config.evaluation, Measures.of(self._config)
        problems = self._run.prepared.splits.test
        return self._measure(policy, version, doing, problems, section.beam_widths, section.samples, measures)

    def _measure(
        self,
        policy: LoadedPolicy,
        version: int,
        doing: str,
        problems: Sequence[Problem],
        beam_widths: Sequence[int],
        samples: int,
        measures: Measures,
    ) -> Evaluation:
        decode = self._workers.decoder(policy, version)
        self._begin(doing)
        with self._console.status(self._doing) as status, waiting(self._doing) as wait:

            def show(done: int, total: int) -> None:
                self._watchdog.moved()
                wait.what = f"{doing}, {done:,} of {total:,}"
                if (self._folder.path / STOP_FILE).exists():
                    raise Stopped("the file stop", STOPPED_STATUS)
                status.update(f"{self._doing}: {done / total:.0%}")

            evaluation = evaluate(decode, problems, beam_widths, samples, self._config.seed, measures, on_progress=show)
        for line in evaluation.failures():
            self._console.print(f"{self._doing}: {line}", soft_wrap=True, highlight=False, markup=False)
        return evaluation

    def _evaluate_before(self) -> Evaluation | None:
        """The starting policy on the test problems; measured once, then kept in the run's folder."""
        if not self._config.evaluation.final:
            return None
        kept = self._folder.path / "evaluation-before.json"
        return self._once(kept, lambda: self._evaluate(self._run.prepared.policy, 0, "evaluating before training"))

    def _measure_validation_before(self) -> None:
        """The starting policy's greedy rewards on the validation problems, which win rates compare with."""
        config, prepared = self._config, self._run.prepared
        if config.evaluation.every and config.reward.is_graded:
            problems = prepared.splits.validation[: config.evaluation.problems]
            measures = replace(Measures.of(config), solved=False, parts=())
            doing = "validating before training"
            self._once(
                self._folder.validation_before_path,
                lambda: self._measure(prepared.policy, 0, doing, problems, [1], 0, measures),
            )

    def _once(self, kept: Path, measure: Callable[[], Evaluation]) -> Evaluation:
        """What is in the file, else what is measured, which is kept there."""
        if kept.exists():
            try:
                return Evaluation.load(kept)
            except UserError as error:
                say(self._console, f"{error}: measuring the starting policy again")
        before = measure()
        self._folder.check_owner()
        before.save(kept)
        return before

    def _evaluate_after(self) -> Evaluation:
        policy = load_policy(str(self._folder.policy))
        return self._evaluate(policy, spent_so_far(self._store).steps, "evaluating after training")

    def _train(self, tracker: Tracker) -> bool:
        """Run the learners to the last step, showing and recording what they write; True when asked to stop before."""
        spent = spent_so_far(self._store)
        if is_spent(self._config, spent):
            return False
        start = spent.steps
        self._tell_start(f"{self._workers.learners}, then step {start + 1}")
        self._begin(f"after step {start}", learning=True)
        tail = MetricsTail(self._folder.metrics_path, start)
        signal = SignalWatch(self._config)
        step_s = 0.0

        def ask(name: str) -> float:
            saved = self._store.newest_step()
            return ask_learners_to_stop(self._folder, name, tail.last_step, saved, step_s, self._console)

        with (
            TrainingProgress(self._config.steps, self._folder.name, start, console=self._console) as progress,
            self._signals.gently(ask),
            Background(self._workers.learn, self._workers.end_learning) as learners,
        ):
            finished = False
            while not finished:
                finished = learners.wait(POLL_S)
                self._folder.check_owner()
                validated = False
                for step, metrics, details in tail.new_steps():
                    validated = validated or has_validation(metrics)
                    progress.update(step, metrics, details)
                    for line in signal.note(step, metrics):
                        progress.note(line)
                    tracker.log(step, metrics)
                    step_s = metrics.get("seconds/total", step_s)
                    if self._on_step is not None:
                        self._on_step(step, metrics)
                    self._begin(f"after step {step}", learning=True)
                if validated:
                    plot_validations(self._folder.metrics(), self._folder.name, self._folder.validations_path)
                for line in self._workers.news():
                    progress.note(line)
                self._signals.check()  # knows the steps that have ended by now
        self._workers.raise_failure(learners.error)
        asked = self._signals.asked is not None or (self._folder.path / STOP_FILE).exists()
        if asked and is_spent(self._config, spent_so_far(self._store)):
            self._signals.raise_asked()
        return asked and not is_spent(self._config, spent_so_far(self._store))

    def _tell_start(self, what: str) -> None:
        self._console.print(f"starting {what}", highlight=False, soft_wrap=True)

    def _begin(self, doing: str, learning: bool = False) -> None:
        self._doing, self._learning = doing, learning
        self._watchdog.moved()

    def _tell_stall(self, silent_s: float) -> None:
        """Say who waits for whom, and what those do that hold up the others."""
        why = self._workers.why_silent(self._learning)
        say(self._console, f"{self._doing}: nothing has come for {silent_s:.0f} s\n{why}")

    def _export_policy(self) -> None:
        """The newest checkpoint's policy becomes the run's."""
        newest = self._store.latest()
        if newest is None:
            raise RuntimeError(f"{self._folder.checkpoints}: training ended without a complete checkpoint")
        policy = load_policy(str(policy_folder(newest)))
        forget_policy(self._folder)
        save_policy(policy.model, policy.tokenizer, self._folder.policy, adapter=policy.adapter)
        record_policy(self._folder)

    def _record_products(self, tracker: Tracker, comparison: EvaluationComparison | None) -> None:
        steps = spent_so_far(self._store).steps
        if comparison is not None:
            table = {row.metric: (row.before.mean, row.after.mean) for row in comparison.rows()}
            tracker.log(0, {f"test/{metric}": before for metric, (before, _) in table.items()})
            tracker.log(steps, {f"test/{metric}": after for metric, (_, after) in table.items()})
            tracker.artifact(self._folder.evaluation_path)
        tracker.table(sample_table(self._folder), f"samples-to-step-{steps}.json")
        for path in (self._folder.config_path, self._folder.report_path):
            tracker.artifact(path)
        tracker.artifact(self._folder.policy, "policy")
