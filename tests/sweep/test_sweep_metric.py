"""Sweeps decide by any metric that all their trials measure alike, graded ones included; their reports show it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_sweep import Arm, Fabrication, fabricate_sweep
from sweep_configs import sweep_config

from bgrpo.errors import UserError
from bgrpo.sweep.report.sweep_pictures import drawn_metrics
from bgrpo.sweep.report.sweep_records import read_sweep
from bgrpo.sweep.report.sweep_report import write_sweep_report
from bgrpo.sweep.report.sweep_summary import summarize
from bgrpo.sweep.report.sweep_verdict import Conclusion, compare_arms, difference_text
from bgrpo.sweep.trial_configs import TrialConfigs

OVERLAP = {"overlap": {"metric": "rouge_l"}, "length": {"metric": "completion_words", "weight": 0}}
SHORT = OVERLAP | {"short": {"metric": "repetition_1", "weight": -1}}
GRADED = {"reward": {"parts": OVERLAP}}


def check(**tree: Any) -> None:
    TrialConfigs(sweep_config(**tree), Path("trials")).check()


def arms(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two arms of GRPO with these rewards."""
    both = {"a": first, "b": second}
    return {name: {"set": {"algorithm": "grpo", "reward": reward}} for name, reward in both.items()}


@pytest.mark.parametrize("metric", ["beam_rank_score", "greedy", "top1", "beam@10"])
def test_a_task_with_a_check_is_decided_by_what_is_solved(metric: str) -> None:
    check(metric=metric)


@pytest.mark.parametrize("metric", ["greedy_reward", "greedy_length", "best_reward@10", "mean_reward@10", "win_rate"])
def test_graded_rewards_are_decided_by_their_metrics(metric: str) -> None:
    check(metric=metric, train={"evaluation": {"every": 5}} | GRADED)


@pytest.mark.parametrize(
    ("metric", "train", "message"),
    [
        ("gready", {}, r"metric=gready: arm bgrpo, .* does not measure it, .*did you mean 'greedy'"),
        ("greedy_reward", {}, "does not measure it, only beam_rank_score, greedy, top1, .*; all have beam_rank_score"),
        ("beam_rank_score", GRADED, "does not measure it, only greedy_reward, greedy_overlap, greedy_length"),
        ("greedy_overlpa", GRADED, "did you mean 'greedy_overlap'"),
        ("pass@1", {}, r"validations of arm .* train\.evaluation\.validation_samples"),
        ("beam@5", {}, "validations of arm bgrpo, .* do not measure it"),
        ("beam@10", {"evaluation": {"beam_widths": [3]}}, r"the test of arm .* train\.evaluation\.beam_widths"),
    ],
)
def test_another_metric_is_refused_at_once_with_the_nearest(metric: str, train: dict[str, Any], message: str) -> None:
    section = {"evaluation": {"every": 5}}
    tree = {**train, "evaluation": section["evaluation"] | train.get("evaluation", {})}
    with pytest.raises(UserError, match=message):
        check(metric=metric, train=tree)


def test_without_a_search_only_the_test_needs_the_metric() -> None:
    check(metric="beam@5", space={}, train={"evaluation": {"every": 0}})


def test_the_arm_that_lacks_the_metric_is_named() -> None:
    with pytest.raises(UserError, match=r"metric=greedy_short: arm a, learner\.learning_rate=1e-05 does not measure"):
        check(metric="greedy_short", arms=arms({"parts": OVERLAP}, {"parts": SHORT}))


def test_what_different_rewards_measure_differently_decides_nothing() -> None:
    both = arms({"parts": OVERLAP}, {"parts": SHORT})
    for metric in ("greedy_reward", "win_rate"):
        with pytest.raises(
            UserError, match=r"have different rewards, .* the same for all: greedy_overlap, greedy_leng"
        ):
            check(metric=metric, arms=both)
    check(metric="greedy_overlap", arms=both)
    weights = {"reward.parts.overlap.weight": {"values": [1.0, 2.0]}}
    with pytest.raises(UserError, match=r"arm bgrpo, reward\.parts\.overlap\.weight=1\.0 and arm bgrpo, .*=2\.0 have"):
        check(metric="greedy_reward", space=weights, train={"evaluation": {"every": 5}} | GRADED)
    shaped = arms({"parts": OVERLAP}, {"parts": OVERLAP, "kind": "unlikely", "combine": "normalize_then_sum"})
    check(metric="greedy_reward", arms=shaped)  # what is measured is the same
    check(metric="greedy", arms=arms({}, {"parts": {"right": {"check": True}, **SHORT}}))


def test_a_graded_sweep_has_a_verdict_tables_and_pictures(tmp_path: Path) -> None:
    what = Fabrication({"grpo": Arm(gain=0.1), "bgrpo": Arm("bgrpo", gain=0.9)}, points=2, graded=True)
    folder = fabricate_sweep(tmp_path / "sweep", what)
    page = write_sweep_report(summarize(read_sweep(folder))).read_text("utf-8")
    summary = summarize(read_sweep(folder))
    assert summary.metric == "greedy_reward" and summary.verdict.winner == "bgrpo"
    assert {"greedy_reward", "greedy_overlap", "best_reward@3", "win_rate"} == set(summary.metrics)
    assert "bgrpo beats grpo in greedy_reward." in page
    told = " ".join(summary.verdict.sentences)
    assert "points" not in told and "Problems without a score in some run, which no comparison counts: bgrpo 1." in told
    row = summary.arms[1].metrics["greedy_reward"]
    assert row.after_t.low < 0, "a reward is not cut to [0, 1]"
    effect = summary.differences["greedy_reward"][0].effect
    assert (
        effect is not None and effect.problems == what.problems - 1 and effect.mean == pytest.approx(3 * 0.8, abs=0.4)
    )
    pictures = {path.stem for path in (folder / "report").glob("*.png")}
    assert pictures == {"results", "validation_steps", "validation_tokens", "learning", "outcomes"}
    assert json.loads((folder / "report" / "summary.json").read_text())["metric"] == "greedy_reward"
    with (folder / "report" / "curves.csv").open() as file:
        assert {"part/overlap/share", "outcome/scored"} <= {line["metric"] for line in csv.DictReader(file)}


def test_shares_differ_by_points_and_scores_by_numbers() -> None:
    summary = compare_arms({"a": {s: [0.5, 1.0] for s in range(3)}, "b": {s: [0.0, 0.75] for s in range(3)}}, "b")
    assert summary[0].effect is not None
    interval = summary[0].effect.bootstrap
    assert difference_text("win_rate", interval) == "+37.5 points [+37.5, +37.5]"
    assert difference_text("greedy_reward", interval) == "+0.375 [+0.375, +0.375]"


@pytest.mark.parametrize("lost", ["some", "all"])
def test_problems_without_a_score_are_left_out_for_both_arms(lost: str) -> None:
    draw = np.random.default_rng(0)
    base = {seed: draw.normal(0, 0.1, 50).tolist() for seed in range(4)}
    better = {seed: [value + 1 for value in values] for seed, values in base.items()}
    better[2][: 5 if lost == "some" else 50] = [math.nan] * (5 if lost == "some" else 50)
    (found,) = compare_arms({"a": better, "b": base}, "b")
    if lost == "all":
        assert found.effect is None and found.conclusion == Conclusion.TOO_FEW_SEEDS
    else:
        assert found.effect is not None and found.effect.problems == 45
        assert found.conclusion == Conclusion.BETTER and found.effect.mean == pytest.approx(1)


def test_pictures_show_families_in_one_order() -> None:
    names = ["greedy_length", "best_of@4", "win_rate", "top1", "beam@10", "greedy_reward", "greedy", "beam@3",
             "sample_length", "beam_rank_score", "sample_reward", "best_reward@4"]  # fmt: skip
    assert drawn_metrics(names) == [
        "beam_rank_score", "greedy", "beam@3", "beam@10", "win_rate", "greedy_reward", "greedy_length",
        "sample_reward", "best_of@4", "best_reward@4",
    ]  # fmt: skip
