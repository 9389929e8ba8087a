"""The state machine of a sweep under any order of events and any number of restarts."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sweep_configs import sweep_config

from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_plan import ENDED, Plan, SavedPlan, Trial, retry_failed

ACTS = ["start", "start", "finished", "failed", "stopped", "interrupt", "restart"]
BETAS = {"learner.beta": {"values": [0.01, 0.02, 0.03]}}


def make_plan(sweep: SweepConfig, trials: list[Trial] | None = None) -> Plan:
    return Plan(sweep, trials or [])


def saved(plan: Plan) -> list[Trial]:
    """The trials as they come back from the file."""
    text = json.dumps(asdict(SavedPlan(trials=plan.trials)))
    return TypeAdapter(SavedPlan).validate_json(text).trials


def restart(plan: Plan, sweep: SweepConfig) -> Plan:
    """As a driver that was killed finds it: through the file."""
    return make_plan(sweep, saved(plan))


def finish(plan: Plan, score: Any, state: Any = "finished") -> None:
    """Run the next trial to its end."""
    trial = plan.next_trial()
    assert trial is not None
    plan.start(trial, 0.0)
    plan.end(trial, state, 1.0, score(trial), "")


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from(["grid", "random", "optuna", "none"]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_every_trial_runs_to_one_end_whatever_happens(
    data: st.DataObject, searcher: str, points: int, search_seeds: int, confirm_seeds: int
) -> None:
    tree: dict[str, Any] = {"search_seeds": search_seeds, "confirm_seeds": confirm_seeds, "trials_per_arm": points}
    tree |= {"space": {}} if searcher == "none" else {"space": BETAS, "searcher": searcher}
    sweep = sweep_config(**tree)
    plan = make_plan(sweep)
    ends: Counter[str] = Counter()
    acts = data.draw(st.lists(st.sampled_from(ACTS), max_size=80))
    for now, act in enumerate(itertools.chain(acts, itertools.cycle(["start", "finished"]))):
        assert now < 400
        if plan.is_done:
            break
        ended_before = [trial for trial in plan.trials if trial.state in ENDED]
        if act == "restart":
            plan = restart(plan, sweep)
            assert not plan.running
            assert [trial for trial in plan.trials if trial.state in ENDED] == ended_before  # nothing lost
        elif act == "start" or not plan.running:
            trial = plan.next_trial()
            if trial is not None:
                assert not ends[trial.id]  # nothing twice
                plan.start(trial, now)
        else:
            trial = data.draw(st.sampled_from(plan.running))
            if act == "interrupt":
                plan.interrupt(trial, now)
            else:
                plan.end(trial, act, now, data.draw(st.none() | st.floats(0, 1)), act)  # type: ignore[arg-type]
                ends[trial.id] += 1
    assert set(ends.values()) <= {1} and len(ends) == len(plan.trials) == plan.total
    assert plan.next_trial() is None
    for arm in sweep.arms:
        of_arm = [trial for trial in plan.trials if trial.algorithm == arm]
        search = [trial for trial in of_arm if trial.phase == "search"]
        confirm = [trial for trial in of_arm if trial.phase == "confirm"]
        assert len(search) == (0 if searcher == "none" else points * search_seeds)
        assert len(confirm) in (0, confirm_seeds)
        assert confirm or all(trial.state != "finished" or trial.value is None for trial in search)
        assert not {trial.seed for trial in search} & {trial.seed for trial in confirm}
    seeds = {arm: {t.seed for t in plan.trials if t.algorithm == arm and t.phase == "confirm"} for arm in sweep.arms}
    assert len({frozenset(of_arm) for of_arm in seeds.values() if of_arm}) <= 1  # paired


def test_arms_take_turns_and_confirm_what_did_best_on_the_mean_over_seeds() -> None:
    sweep = sweep_config(space=BETAS, searcher="grid", search_seeds=2, confirm_seeds=2)
    plan = make_plan(sweep)
    assert [trial.algorithm for trial in plan.trials[:6]] == ["bgrpo", "bgrpo", "grpo", "grpo", "bgrpo", "bgrpo"]
    assert len(plan.trials) == 12 and plan.total == 16
    scores = {
        "bgrpo": {(0, 0): 0.9, (0, 1): 0.1, (1, 0): 0.6, (1, 1): 0.6, (2, 0): 0.5, (2, 1): 0.55},
        "grpo": {(0, 0): 0.2, (0, 1): 0.2, (1, 0): 0.1, (1, 1): 0.1, (2, 0): 0.0, (2, 1): 0.0},
    }
    for _ in range(12):
        finish(plan, lambda trial: scores[trial.algorithm][trial.point, trial.seed])
    chosen = plan.selection()
    assert chosen["bgrpo"]["point"] == 1 and chosen["bgrpo"]["value"] == pytest.approx(0.6)
    assert chosen["grpo"]["point"] == 0
    confirm = [trial for trial in plan.trials if trial.phase == "confirm"]
    assert [(trial.algorithm, trial.seed, trial.overrides["learner.beta"]) for trial in confirm] == [
        ("bgrpo", 1000, 0.02), ("bgrpo", 1001, 0.02), ("grpo", 1000, 0.01), ("grpo", 1001, 0.01),
    ]  # fmt: skip
    assert all(trial.overrides["algorithm"] == trial.algorithm for trial in confirm)


def test_cut_and_failed_trials_are_not_selected() -> None:
    sweep = sweep_config(space=BETAS, searcher="grid", confirm_seeds=1)
    plan = make_plan(sweep)
    ends = iter(
        [("failed", None), ("finished", 0.1), ("stopped", 0.9), ("failed", None), ("finished", 0.2), ("failed", 1)]
    )
    for state, value in ends:  # bgrpo, grpo, bgrpo, …
        finish(plan, lambda _, value=value: value, state)
    assert {arm: entry["value"] for arm, entry in plan.selection().items()} == {"bgrpo": 0.2, "grpo": 0.1}
    assert plan.total == 8


def test_an_arm_whose_search_failed_does_not_hold_the_others() -> None:
    plan = make_plan(sweep_config(space=BETAS, searcher="grid", confirm_seeds=2))
    for _ in range(6):
        trial = plan.next_trial()
        assert trial is not None
        plan.start(trial, 0.0)
        plan.end(trial, "failed" if trial.algorithm == "bgrpo" else "finished", 1.0, 0.5, "")
    assert {trial.algorithm for trial in plan.trials if trial.phase == "confirm"} == {"grpo"}
    for _ in range(2):
        finish(plan, lambda _: 0.5)
    assert plan.is_done


def test_what_runs_is_not_started_again_and_an_interrupted_trial_comes_first() -> None:
    plan = make_plan(sweep_config())
    first, second = plan.next_trial(), None
    assert first is not None
    plan.start(first, 10.0)
    second = plan.next_trial()
    assert second is not None and second is not first
    plan.start(second, 11.0)
    second.resources = {"CPU": 2.0, "GPU": 0.5}
    plan.interrupt(second, 15.0)
    assert plan.next_trial() is second
    plan.start(second, 100.0)
    plan.end(second, "finished", 101.0, float("nan"), "")
    assert (second.seconds, second.cpu_seconds, second.gpu_seconds) == (5.0, 10.0, 2.5)
    assert (second.started, second.ended, second.attempts, second.value) == (11.0, 101.0, 2, None)
    with pytest.raises(RuntimeError, match="is finished, expected running"):
        plan.end(second, "failed", 102.0, None, "")


def test_failed_trials_go_on_unless_they_would_diverge_again_or_come_too_late() -> None:
    sweep = sweep_config(search_seeds=1, confirm_seeds=2)
    plan = make_plan(sweep)
    ends = {"bgrpo": [("finished", False), ("failed", False)], "grpo": [("failed", False), ("failed", True)]}
    for index in range(4):
        trial = plan.next_trial()
        assert trial is not None
        plan.start(trial, 0.0)
        state, diverged = ends[trial.algorithm][index // 2]
        plan.end(trial, state, 10.0, 0.5, f"reason of {trial.id}", diverged)  # type: ignore[arg-type]
    first, second = (trial for trial in plan.trials if trial.phase == "confirm")
    for confirm, state in ((first, "failed"), (second, "finished")):
        plan.start(confirm, 20.0)
        plan.end(confirm, state, 30.0, 0.5, "")  # type: ignore[arg-type]
    assert plan.is_done and plan.total == 6

    trials = saved(plan)
    before = {trial.id: trial.state for trial in trials}
    assert retry_failed(trials) == [
        "bgrpo-search-01-seed0 stays failed: what is best of bgrpo was settled without it",
        "grpo-search-01-seed0 stays failed: it diverged, and would again",
    ]
    changed = {trial.id: trial.state for trial in trials if trial.state != before[trial.id]}
    assert changed == {"grpo-search-00-seed0": "pending", "bgrpo-confirm-seed1000": "pending"}
    resumed = make_plan(sweep, trials)
    assert not resumed.is_done
    retried = resumed.trial("grpo-search-00-seed0")
    assert (retried.reason, retried.ended, retried.value, retried.attempts) == ("", None, None, 1)
    assert retried.seconds == 10.0, "what it cost before stays"
    while not resumed.is_done:
        finish(resumed, lambda _: 0.7)
    assert resumed.selection()["grpo"]["trial"] == "grpo-search-00-seed0"
    assert len([trial for trial in resumed.trials if trial.phase == "confirm" and trial.state == "finished"]) == 4


@given(st.lists(st.tuples(st.sampled_from(["finished", "failed", "stopped"]), st.booleans()), max_size=20))
def test_a_retry_touches_failed_trials_only_and_a_second_one_changes_nothing(ends: list[tuple[Any, bool]]) -> None:
    plan = make_plan(sweep_config(space=BETAS, searcher="grid", confirm_seeds=2))
    for state, diverged in ends:
        trial = plan.next_trial()
        if trial is not None:
            plan.start(trial, 0.0)
            plan.end(trial, state, 1.0, 0.5, "", diverged and state == "failed")
    trials = saved(plan)
    kept = retry_failed(trials)
    for trial, old in zip(trials, plan.trials, strict=True):
        if trial != old:
            assert old.state == "failed" and not old.diverged and trial.state == "pending"
    assert len(kept) == sum(trial.state == "failed" for trial in trials)
    settled = [asdict(trial) for trial in trials]
    assert retry_failed(trials) == kept and [asdict(trial) for trial in trials] == settled
