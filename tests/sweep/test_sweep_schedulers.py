"""Which trials Tune's schedulers cut: the worse ones of an arm's search, and never a confirm trial."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from sweep_fakes import EndlessTrial, ScriptedTrial
from sweep_runs import tiny_sweep

from bgrpo.chaos.faults import wait_until
from bgrpo.errors import UserError
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_driver import run_sweep
from bgrpo.sweep.sweep_folder import SweepFolder
from bgrpo.sweep.sweep_plan import Plan
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.sweep.tune.tune_run import run_on_tune
from bgrpo.sweep.tune.tune_schedulers import make_scheduler
from bgrpo.sweep.tune.tune_searcher import PlanSearcher
from bgrpo.sweep.tune.tune_trial import OUTCOME, PERCENT, REASON, SCORE
from bgrpo.training.run_attempt import Background


@dataclass(frozen=True)
class FakeTrial:
    trial_id: str

    @property
    def config(self) -> dict[str, Any]:
        return {"job": types.SimpleNamespace(trial=self.trial_id)}


class Arena:
    """Drives a scheduler as Tune's controller does, with scripted trials."""

    def __init__(self, scheduler: str, **fields: Any) -> None:
        sweep = SweepConfig.model_validate({"scheduler": scheduler, "grace": 0.2} | fields)
        self._scheduler = make_scheduler(sweep, lambda name: None if "confirm" in name else name.partition("-")[0])

    def reports(self, name: str, scores: list[float]) -> int:
        """How many results the trial gives before it is cut; all of them when it is not."""
        trial = FakeTrial(name)
        others_wait = [types.SimpleNamespace(status="PENDING")]
        controller = types.SimpleNamespace(get_live_trials=lambda: others_wait)
        self._scheduler.on_trial_add(controller, trial)
        for done, score in enumerate(scores, 1):
            result = {PERCENT: 100 * done / len(scores), SCORE: score}
            if done == len(scores) or self._cuts(controller, trial, result):
                self._scheduler.on_trial_complete(controller, trial, result)
                return done
        raise AssertionError("no scores")

    def _cuts(self, controller: Any, trial: Any, result: dict[str, float]) -> bool:
        decision = self._scheduler.on_trial_result(controller, trial, result)
        assert decision in (TrialScheduler.CONTINUE, TrialScheduler.STOP)  # a training run cannot pause
        return decision == TrialScheduler.STOP


MEDIAN_NEEDS = 3
"""Trials with results, besides the one in question, before Tune's median rule cuts."""

GOOD, BAD = [0.5, 0.6, 0.7, 0.8, 0.9], [0.1, 0.1, 0.1, 0.1, 0.1]


def test_without_a_scheduler_nothing_is_cut() -> None:
    arena = Arena("none")
    assert [arena.reports(f"a-{i}", scores) for i, scores in enumerate([GOOD, BAD, BAD])] == [5, 5, 5]


def test_asha_cuts_the_worse_trials_at_the_first_rung() -> None:
    arena = Arena("asha", reduction_factor=2)
    assert [arena.reports(f"a-{i}", scores) for i, scores in enumerate([GOOD, BAD, GOOD, BAD])] == [5, 1, 5, 1]


def test_the_median_rule_cuts_what_stays_below_the_median() -> None:
    arena = Arena("median")
    reports = [arena.reports(f"a-{i}", scores) for i, scores in enumerate([GOOD, GOOD, GOOD, BAD])]
    assert reports[:3] == [5, 5, 5] and reports[3] == 1


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_arms_do_not_cut_each_other_and_confirm_trials_are_never_cut(scheduler: str) -> None:
    arena = Arena(scheduler, reduction_factor=2)
    for i in range(4):
        assert arena.reports(f"strong-{i}", GOOD) == 5
    assert arena.reports("weak-0", BAD) == 5  # the best of its own arm so far
    assert arena.reports("strong-confirm", BAD) == 5


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    tree: dict[str, Any] = {
        "arms": {"a": {}},
        "space": {"learner.learning_rate": {"values": [1e-2, 1e-3, 2e-2]}},
        "searcher": "grid",
        "scheduler": "asha",
        "grace": 0.2,
        "reduction_factor": 2,
        "confirm_seeds": 1,
        "max_concurrent": 1,  # each trial meets the results of those before
        "train": {"evaluation": {"every": 1}},
        "run": {"dir": str(tmp_path), "name": "fakes"},
        "tracking": {"enabled": False},
    }
    return SweepConfig.model_validate(tree)


def test_a_diverged_trial_is_told_from_one_that_failed_otherwise(sweep: SweepConfig) -> None:
    folder = SweepFolder.create(sweep, None)
    plan = Plan(sweep)
    searcher = PlanSearcher(sweep, folder, plan, TrialConfigs(sweep, folder.trials), None, lambda line: None)
    first, second, third = plan.trials
    for trial in (first, second, third):
        plan.start(trial, 0.0)
    searcher.trial_ended(first.id, {OUTCOME: "diverged", REASON: "KL"})
    searcher.trial_ended(second.id, {OUTCOME: "failed", REASON: "disk"})
    searcher.trial_ended(third.id, None)
    kept = folder.read_plan().trials
    assert [(trial.state, trial.diverged) for trial in kept] == [("failed", True), ("failed", False), ("failed", False)]


def run_scripted(sweep: SweepConfig, tmp_path: Path) -> tuple[SweepFolder, Plan]:
    """Run the sweep on Tune with scripted trials, to its end."""
    folder = SweepFolder.create(sweep, None)
    plan = Plan(sweep)
    searcher = PlanSearcher(sweep, folder, plan, TrialConfigs(sweep, folder.trials), None, lambda line: None)
    run_on_tune(sweep, searcher, tmp_path / "tune", ScriptedTrial)
    return folder, plan


def test_a_driver_that_was_killed_does_nothing_twice(sweep: SweepConfig) -> None:
    """The quick form of ``test_sweep_resume.py``: what is on disk when a driver dies is all that the next one has."""
    folder = SweepFolder.create(sweep, None)
    plan = Plan(sweep)
    searcher = PlanSearcher(sweep, folder, plan, TrialConfigs(sweep, folder.trials), None, lambda line: None)
    first, second, third = plan.trials
    for trial in (first, second):
        plan.start(trial, 0.0)
    searcher.trial_ended(first.id, {OUTCOME: "finished", REASON: ""})
    assert [trial.state for trial in folder.read_plan().trials] == ["finished", "running", "pending"]
    resumed = Plan(sweep, folder.read_plan().trials)
    assert resumed.trial(first.id) == first
    started = []
    while (trial := resumed.next_trial()) is not None:
        resumed.start(trial, 1.0)
        started.append(trial.id)
    assert started == [second.id, third.id]
    assert resumed.trial(second.id).attempts == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_tune_runs_the_plan_and_cuts_the_worse_half(sweep: SweepConfig, tmp_path: Path) -> None:
    folder, plan = run_scripted(sweep, tmp_path)
    trials = plan.trials
    states = {trial.id: trial.state for trial in trials}
    assert [states[f"a-search-{i:02d}-seed0"] for i in range(3)] == ["finished", "stopped", "finished"]
    assert "cut by asha" in next(trial.reason for trial in trials if trial.state == "stopped")
    assert plan.is_done
    assert folder.read_plan().trials == plan.trials


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_that_is_abandoned_leaves_no_thread_in_ray(sweep: SweepConfig, tmp_path: Path) -> None:
    folder = SweepFolder.create(sweep, None)
    configs = TrialConfigs(sweep, folder.trials)
    searcher = PlanSearcher(sweep, folder, Plan(sweep), configs, None, lambda line: None)
    with Background(lambda: run_on_tune(sweep, searcher, tmp_path / "tune", EndlessTrial), searcher.abandon) as trials:
        wait_until(lambda: trials.wait(0) or any(folder.trials.iterdir()), "a trial", 240)
        assert not trials.wait(0), trials.error
    assert trials.wait(200)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_whole_sweep_with_optuna_and_the_median_rule(sweep: SweepConfig, tmp_path: Path) -> None:
    """A trial's score is its learning rate, so what is cut and what is confirmed follows from the suggested rates."""
    pytest.importorskip("optuna")
    points = 5
    space = {"learner.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}}
    tree = sweep.model_dump() | {
        "searcher": "optuna",
        "scheduler": "median",
        "space": space,
        "trials_per_arm": points,
        "seed": 3,
    }
    _, plan = run_scripted(SweepConfig.model_validate(tree), tmp_path)
    search, (confirm,) = plan.trials[:points], plan.trials[points:]
    rates = [float(trial.overrides["learner.learning_rate"]) for trial in search]
    assert len(set(rates)) == points and all(1e-3 <= rate <= 1e-1 for rate in rates)
    cut = [index >= MEDIAN_NEEDS and rates[index] < median(rates[:index]) for index in range(points)]
    assert [trial.state for trial in search] == ["stopped" if was_cut else "finished" for was_cut in cut], rates
    assert any(cut), "no suggestion was below the median of those before"
    assert all("cut by median" in trial.reason for trial in search if trial.state == "stopped")
    best = max(rate for rate, was_cut in zip(rates, cut, strict=True) if not was_cut)
    assert plan.is_done and confirm.state == "finished"
    assert confirm.overrides["learner.learning_rate"] == best
    assert plan.selection()["a"]["value"] == pytest.approx(best)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_never_fits_is_refused_before_a_folder_exists(tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path, "huge", arms={"bgrpo": {"set": {"rollout.actors": 40}}})
    with pytest.raises(UserError, match=r"the cluster is too small: .*rollout\.actors 40 × 0\.5 .* the cluster has 8"):
        run_sweep(sweep)
    assert not (tmp_path / "huge").exists()
