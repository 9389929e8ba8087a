"""Comparison and verdict: each way in which a disturbed run may differ, or break a promise, is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from bgrpo.chaos.chaos_report import ChaosReport
from bgrpo.chaos.memory_growth import MemoryTrend
from bgrpo.chaos.recovery import FaultRecord
from bgrpo.chaos.run_comparison import ResultComparison, compare_metrics, compare_runs
from bgrpo.chaos.schedule import Fault, FaultKind
from bgrpo.runs.run_folder import RunFolder

STEPS = 4


def make_run(folder: Path, weights: np.ndarray) -> RunFolder:
    run = RunFolder(folder)
    run.policy.mkdir(parents=True)
    save_file({"w": weights}, run.policy / "model.safetensors")
    for step in range(1, STEPS + 1):
        timed = {
            "seconds/total": float(hash(folder) % 97),
            "rollouts_per_s": 3.0 * len(folder.name),
            "used/seconds": 1.0,
        }
        run.append_metrics(step, {"reward_mean": 0.1 * step, "groups_drawn": 4.0, "kl": float("nan")} | timed)
    return run


WEIGHTS = np.array([1.0, -0.0, 3.0], np.float32)


def test_equal_runs_are_the_same_whatever_their_times(tmp_path: Path) -> None:
    comparison = compare_runs(make_run(tmp_path / "a", WEIGHTS), make_run(tmp_path / "bb", WEIGHTS))
    assert comparison == ResultComparison(True, 0.0, [])


@pytest.mark.parametrize(
    ("weights", "difference"),
    [
        (np.array([1.0, 0.0, 3.0], np.float32), 0.0),  # minus zero is not zero, bit for bit
        (np.array([1.0, -0.0, 3.5], np.float32), 0.5),
        (np.array([1.0, -0.0], np.float32), None),
    ],
)
def test_other_weights_are_another_result(tmp_path: Path, weights: np.ndarray, difference: float | None) -> None:
    comparison = compare_runs(make_run(tmp_path / "a", WEIGHTS), make_run(tmp_path / "b", weights))
    assert not comparison.same_policy and comparison.largest_difference == difference
    assert "final policies differ" in comparison.problems[0]


def test_a_run_without_a_policy_is_named(tmp_path: Path) -> None:
    made = make_run(tmp_path / "a", WEIGHTS)
    assert compare_runs(made, RunFolder(tmp_path / "b")).problems == ["no final policy of run b"]


def lines() -> list[dict[str, Any]]:
    return [{"step": step, "reward_mean": 0.5, "groups_drawn": 4.0, "time": 9.0} for step in range(1, 6)]


def test_steps_lost_or_doubled_are_named() -> None:
    lost, doubled = lines(), lines()
    del lost[2]
    doubled.insert(3, doubled[2])
    assert compare_metrics(lines(), lost) == ["the steps differ: 5 undisturbed, 4 disturbed; lost [3], added []"]
    assert compare_metrics(lines(), doubled) == ["the steps differ: 5 undisturbed, 6 disturbed; lost [], added [3]"]
    assert compare_metrics(lines(), [])[0].endswith("5 undisturbed, 0 disturbed; lost [1, 2, 3, 4, 5], added []")
    assert compare_metrics(lines(), lines()[::-1])[0].endswith("lost [], added []"), "in another order"


def test_a_lost_group_is_named_and_long_lists_are_cut() -> None:
    changed = lines()
    changed[1]["groups_drawn"] = 3.0
    assert compare_metrics(lines(), changed) == ["step 2: groups_drawn is 3.0, undisturbed 4.0"]
    many = [line | {"reward_mean": 0.25, "groups_drawn": 5.0} for line in lines()]
    problems = compare_metrics(lines(), many)
    assert len(problems) == 6 and problems[-1] == "and 5 more differences"


def record(kind: FaultKind, **changes: Any) -> FaultRecord:
    return replace(FaultRecord(Fault(3, kind, 5.0, 0.5), 10.0, "victim", step_s=1.0), **changes)


def report(*faults: FaultRecord, **changes: Any) -> ChaosReport:
    comparison = ResultComparison(True, 0.0, [])
    memory = [MemoryTrend("driver", 2, 3e8, 1e5), MemoryTrend("learners", 0, 0.0, None)]
    made = ChaosReport(1, True, "", 5, 100, 300.0, 120.0, list(faults), comparison, memory, [])
    return replace(made, **changes)


def test_all_well() -> None:
    good = report(
        record(FaultKind.KILL_ROLLOUT, noticed_s=0.5, replaced_s=2.0), record(FaultKind.KILL_LEARNER, redone_steps=5)
    )
    assert good.problems == []
    assert good.verdict().splitlines()[-1] == "every fault was survived"


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (
            report(record(FaultKind.KILL_LEARNER, redone_steps=6)),
            "6 steps were made again, more than checkpoint.every=5",
        ),
        (report(record(FaultKind.TERMINATE_DRIVER, driver_status=1)), "status 1 instead of 143"),
        (report(left_behind=["rollout 3 (pid 7)"]), "still there after the end: rollout 3"),
        (report(comparison=ResultComparison(False, 0.5, ["the final policies differ"])), "the final policies differ"),
        (
            report(record(FaultKind.STOP_ROLLOUT, step_s=None), finished=False, failure="boom", comparison=None),
            "fault 3 (stop-rollout, victim): no training step was complete after it",
        ),
        (report(finished=False, failure="boom", comparison=None), "did not finish: boom"),
    ],
)
def test_each_broken_promise_is_named(broken: ChaosReport, problem: str) -> None:
    assert any(problem in text for text in broken.problems)
    assert f"NOT KEPT: {broken.problems[0]}" in broken.verdict()
    assert "every fault was survived" not in broken.verdict()
    assert broken.to_dict()["problems"] == broken.problems


def test_a_fault_just_before_a_good_end_is_survived() -> None:
    assert report(record(FaultKind.STOP_ROLLOUT, step_s=None)).problems == []


def test_the_summary_counts_by_kind() -> None:
    faults = [
        record(FaultKind.KILL_LEARNER, replaced_s=seconds, redone_steps=steps)
        for seconds, steps in ((8.0, 2), (12.0, 9), (9.0, 0))
    ]
    skipped = [record(FaultKind.KILL_LEARNER, skipped="starting", step_s=None)]
    (summary,) = report(*faults, *skipped).to_dict()["kinds"]
    assert (summary["injected"], summary["survived"], summary["skipped"]) == (3, 2, {"starting": 1})
    assert summary["replaced_s"] == (9.0, 12.0) and summary["redone_steps"] == (2, 9) and summary["noticed_s"] is None


def test_the_report_can_be_written_and_shown(tmp_path: Path) -> None:
    made = report(
        record(FaultKind.KILL_ROLLOUT, noticed_s=0.25, replaced_s=1.5), record(FaultKind.KILL_LEARNER, skipped="x")
    )
    assert json.loads(json.dumps(made.to_dict()))["faults"][0]["fault"]["kind"] == "kill-rollout"
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(made.tables())
    text = console.export_text()
    assert "kill-rollout" in text and "0.25" in text and "flat" in text and "too short" in text
