"""A sweep from start to finish: check, plan, run the trials on Ray Tune, report."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.display.terminal import PlainConsole
from bgrpo.distributed.session.cluster_address import cluster_address
from bgrpo.distributed.session.guarded_session import guarded_ray_session
from bgrpo.distributed.session.ray_session import check_room_here, missing_room, training_demand
from bgrpo.errors import Stopped, UserError
from bgrpo.runs.budget import Spent, progress
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.runs.preparation import check_input, check_policy
from bgrpo.runs.run_folder import RunFolder, check_place, flatten
from bgrpo.runs.stopping import StopSignals, last_words, status_of, stop_signals
from bgrpo.sweep.cluster_room import arithmetic, most_at_a_time, total
from bgrpo.sweep.report.sweep_records import read_sweep
from bgrpo.sweep.report.sweep_report import write_sweep_report
from bgrpo.sweep.report.sweep_summary import summarize
from bgrpo.sweep.report.sweep_verdict import Verdict
from bgrpo.sweep.search_space import number_of_points
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_display import SweepDisplay, TrialProgress, time_left
from bgrpo.sweep.sweep_folder import SweepFolder, settle_interrupted
from bgrpo.sweep.sweep_plan import Plan, Trial, retry_failed
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.sweep.tune.tune_run import run_on_tune
from bgrpo.sweep.tune.tune_searcher import PlanSearcher, cluster_nodes, trial_bundles
from bgrpo.training.metrics_tail import MetricsTail
from bgrpo.training.run_attempt import Background
from bgrpo.waits import waiting

POLL_S = 0.5
SAVE_S = 60.0
"""What running trials may take to save their checkpoints and to end, all at once on the machines they share."""

MOST_AT_A_TIME = 1000
SweepState = Literal["finished", "interrupted", "failed"]
TRIAL_STATES = ("finished", "stopped", "failed", "running", "pending")
MLFLOW_STATUS: dict[SweepState, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep left behind."""

    folder: SweepFolder
    state: SweepState  # interrupted: go on with --resume; failed: every trial did
    trials: dict[str, int]  # number in each state
    selection: dict[str, dict[str, Any]]  # see bgrpo.sweep.sweep_plan.Plan.selection
    report: Path | None  # page to open; None for an interrupted sweep
    verdict: Verdict | None  # likewise


def sweep_and_announce(
    sweep: SweepConfig, config_name: str | None, old: SweepFolder | None, retry_failed: bool, as_json: bool
) -> int:
    """What ``bgrpo sweep`` does; arguments as of :func:`run_sweep`. Returns the exit status."""
    with stop_signals() as signals:
        result = run_sweep(sweep, config_name, old, PlainConsole(stderr=as_json), retry_failed)
    if as_json:
        print(json.dumps(_summary(result)))
    else:
        _announce(result, PlainConsole())
    return {"finished": 0, "interrupted": status_of(signals.asked), "failed": 1}[result.state]


def run_sweep(
    sweep: SweepConfig,
    config_name: str | None = None,
    old: SweepFolder | None = None,
    console: Console | None = None,
    retry_failed: bool = False,
) -> SweepResult:
    """Run the trials of a sweep that have not ended, on the cluster we run on or on a local Ray.

    Args:
        sweep: what to compare.
        config_name: part of a new sweep's default name.
        old: folder of a sweep that goes on.
        console: for the live table.
        retry_failed: run failed trials of ``old`` again too, see :func:`bgrpo.sweep.sweep_plan.retry_failed`.

    Raises:
        UserError: bad input, before any process starts.
    """
    console = console or PlainConsole()
    with stop_signals() as signals:
        cluster_address()  # a wrong one is told before anything is made
        if old is None:
            check_place(sweep.run.dir, sweep.run.name, "sweep")
        trials_dir = Path(sweep.run.dir) / (str(sweep.run.name) if old is None else old.name) / "trials"
        examples = TrialConfigs(sweep, trials_dir).check()
        if old is None:
            with waiting("the input of every arm to be checked"):
                for config in examples:
                    check_input(config)
        else:
            check_policy(examples[0].policy.path)  # that of all arms
            old.read_plan()  # a damaged one is told before Ray starts
        _say_what_comes(sweep, console)
        begun = old is not None
        made = old or SweepFolder.create(sweep, config_name)
        try:
            with made.exclusive() as folder, guarded_ray_session(training_demand(examples[0]), signals):
                for config in examples[1:]:
                    check_room_here(training_demand(config))
                at_a_time = _say_how_many(sweep, examples, console)
                begun = True
                if old is not None:
                    folder.write_config(sweep)
                _say(console, f"sweep {folder.name} in {folder.path}")
                return _Sweep(sweep, folder, at_a_time, console, signals).go(retry_failed)
        except Exception:
            if not begun:  # its name stays free
                shutil.rmtree(made.path, ignore_errors=True)
            raise


class _Sweep:
    """One attempt at a sweep."""

    def __init__(
        self, sweep: SweepConfig, folder: SweepFolder, at_a_time: int, console: Console, signals: StopSignals
    ) -> None:
        self._signals = signals
        self._sweep = sweep
        self._folder = folder
        self._at_a_time = at_a_time
        self._console = console
        self._configs = TrialConfigs(sweep, folder.trials)
        self._tails: dict[str, tuple[MetricsTail, dict[str, float]]] = {}
        folder.logs.mkdir(exist_ok=True)
        self._how_to_go_on = f"go on with: bgrpo sweep --resume {folder.path}"

    def go(self, retry: bool) -> SweepResult:
        sweep, folder = self._sweep, self._folder
        saved = folder.read_plan()
        settle_interrupted(saved.trials, folder.trials, sweep.metric)
        for line in retry_failed(saved.trials) if retry else ():
            _say(self._console, line)
        plan = Plan(sweep, saved.trials)
        params, tags = flatten(sweep.model_dump(mode="json")), {"sweep": folder.name, "kind": "sweep"}
        tracker = Tracker.start(
            sweep.tracking, sweep.run.dir, folder.name, params, tags, run_id=saved.mlflow_run_id
        )  # the parent of the trials' MLflow runs
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            display = SweepDisplay(plan, self._at_a_time, sweep.metric, self._console)
            parent_run = tracker.run_id or saved.mlflow_run_id
            searcher = PlanSearcher(sweep, folder, plan, self._configs, parent_run, display.note)
            self._run_trials(searcher, display)
            state = _state(plan)
            searcher.close(state)
            self._close_cut_runs(plan)
            report, verdict = None, None
            if state != "interrupted":
                reported = summarize(read_sweep(folder.path))
                report, verdict = write_sweep_report(reported), reported.verdict
                tracker.artifact(report.parent, "report")
            status = MLFLOW_STATUS[state]
        except Stopped as stop:
            status = "KILLED"
            raise Stopped(f"{stop.name}: {self._how_to_go_on}", stop.status) from stop
        finally:
            tracker.finish(status)
        counts = {name: sum(trial.state == name for trial in plan.trials) for name in TRIAL_STATES}
        return SweepResult(folder, state, counts, plan.selection(), report, verdict)

    def _run_trials(self, searcher: PlanSearcher, display: SweepDisplay) -> None:
        if searcher.is_over:
            return

        def ask(name: str) -> float:
            searcher.stopping = True
            display.note(f"{name}: running trials save a checkpoint, then the sweep stops, within {SAVE_S:.0f} s")
            return SAVE_S

        with (
            tempfile.TemporaryDirectory(prefix="bgrpo-tune-") as storage,
            self._signals.gently(ask),
            last_words(lambda status, cause: self._how_to_go_on),
            Background(lambda: run_on_tune(self._sweep, searcher, storage), searcher.abandon) as trials,
            display,
        ):
            while not trials.wait(POLL_S):
                self._signals.check()
                display.update([self._row(trial) for trial in list(searcher.plan.trials)])
                if searcher.stopping:
                    searcher.ask_to_stop()
            display.update([self._row(trial) for trial in searcher.plan.trials])
        if trials.error is not None:
            raise trials.error

    def _row(self, trial: Trial) -> TrialProgress:
        if trial.state == "pending" and not trial.attempts:
            return TrialProgress(trial, 0, 0.0, None, None)
        if trial.id not in self._tails:
            self._tails[trial.id] = MetricsTail(self._folder.trials / trial.id / "metrics.jsonl"), {}
        tail, newest = self._tails[trial.id]
        for written in tail.new_steps():
            newest |= written.metrics
        fraction = min(1.0, progress(self._configs.of(trial), Spent.from_metrics(newest)))
        left_s = time_left(trial, fraction, time.time())
        return TrialProgress(trial, tail.last_step, fraction, newest.get(f"validation/{self._sweep.metric}"), left_s)

    def _close_cut_runs(self, plan: Plan) -> None:
        """Runs that were cut but not given the time to say so."""
        for trial in plan.trials:
            run = RunFolder(self._folder.trials / trial.id)
            if trial.state == "stopped" and run.info().get("status") == "running":
                run.update(status="stopped")


def _state(plan: Plan) -> SweepState:
    if not plan.is_done:
        return "interrupted"
    return "failed" if all(trial.state == "failed" for trial in plan.trials) else "finished"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


def _say_what_comes(sweep: SweepConfig, console: Console) -> None:
    """The number of trials, as a sum."""
    arms, points, seeds = len(sweep.arms), number_of_points(sweep), len(sweep.searched_seeds)
    search = f"{points} points × {seeds} seeds + " if points else ""
    count = arms * (points * seeds + sweep.confirm_seeds)
    _say(
        console,
        f"{count} trials: {arms} arms ({', '.join(sweep.arms)}) × ({search}{sweep.confirm_seeds} confirm seeds), "
        f"{sweep.budget.amount:g} {sweep.budget.kind} each",
    )


def _say_how_many(sweep: SweepConfig, examples: list[TrainConfig], console: Console) -> int:
    """How many trials of the most demanding arm run at a time, with the sum that says so."""
    largest = max(examples, key=lambda config: tuple(total(trial_bundles(config)).values())[::-1])
    nodes, limit = cluster_nodes(), sweep.max_concurrent or MOST_AT_A_TIME
    at_a_time = most_at_a_time(nodes, trial_bundles(largest), limit)
    demands = training_demand(largest)
    named = [(demand.name, demand.count, {"CPU": demand.cpus, "GPU": demand.gpus}) for demand in demands]
    text = arithmetic(named, nodes, at_a_time)
    if not at_a_time and not missing_room(demands, ray.cluster_resources()):
        raise UserError(
            f"{text}: no node has room for each of its processes; reserve less for one, or use larger nodes"
        )
    _say(console, text + f" (max_concurrent={limit})" * (at_a_time == limit))
    return max(1, at_a_time)  # 0: the autoscaler will make room for one


def _summary(result: SweepResult) -> dict[str, Any]:
    """A sweep's result for machines."""
    return {
        "sweep": result.folder.name,
        "status": result.state,
        "folder": str(result.folder.path),
        "report": None if result.report is None else str(result.report),
        "trials": result.trials,
        "selection": result.selection,
        "verdict": None if result.verdict is None else [*result.verdict.lines()],
    }


def _announce(result: SweepResult, console: Console) -> None:
    """The end of a sweep, for people."""
    counts = ", ".join(f"{count} {state}" for state, count in result.trials.items() if count)
    lines = [f"sweep {result.state}: {counts}"]
    lines += [
        f"best of {arm}: {chosen['trial']}, {chosen['metric']} {chosen['value']:.3f} on the validation problems"
        for arm, chosen in result.selection.items()
    ]
    lines += [] if result.verdict is None else result.verdict.lines()
    if result.report is None:
        lines.append(f"go on with: bgrpo sweep --resume {result.folder.path}")
    else:
        lines += [f"report: {result.report}", f"TensorBoard: tensorboard --logdir {result.folder.path / 'tensorboard'}"]
    for line in lines:
        _say(console, line)
