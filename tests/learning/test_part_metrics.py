"""What is logged of the parts of a reward: shares of the variance, seconds, and the log of groups."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import RewardSection, TrainConfig, build_config
from bgrpo.groups import Completion, ScoredGroup, Verdict
from bgrpo.learning.batch import LearningStep, choose_groups
from bgrpo.learning.step_metrics import part_metrics, rollout_metrics, variance_shares
from bgrpo.runs.group_log import GroupLog
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem

SCORES = st.floats(-100, 100).map(lambda value: round(value, 3))
GROUPS = st.lists(
    st.lists(st.tuples(st.none() | SCORES, SCORES, SCORES), min_size=1, max_size=6), min_size=1, max_size=4
)
WEIGHTS = st.tuples(*[st.sampled_from([-1.0, 0.0, 0.3, 2.0])] * 2)


def reward(weights: tuple[float, ...], combine: str = "sum") -> RewardSection:
    names = zip("abc", weights, strict=True)
    parts = {name: {"metric": "bleu", "weight": weight} for name, weight in names}
    return build_config(TrainConfig, {"reward": {"parts": parts, "combine": combine}}, "test").reward


def verdict(values: tuple[float | None, ...], weights: tuple[float, ...]) -> Verdict:
    parts = dict(zip("abc", values, strict=True))
    total = sum(weight * value for weight, value in zip(weights, values, strict=True) if value is not None)
    return Verdict("scored", total, parts=parts)


@given(GROUPS, WEIGHTS)
def test_shares_are_covariances_with_the_sum_within_groups(groups: Any, pair: tuple[float, float]) -> None:
    """Against statistics.covariance, group by group; None adds nothing to its sum."""
    weights = (*pair, 1.0)
    verdicts = [[verdict(values, weights) for values in group] for group in groups]
    found = variance_shares(verdicts, reward(weights))
    products, total = [0.0, 0.0, 0.0], 0.0
    for group in groups:
        if len(group) > 1:
            added = [[w * (v or 0.0) for v, w in zip(values, weights, strict=True)] for values in group]
            sums = [sum(row) for row in added]
            for part in range(3):
                products[part] += statistics.covariance([row[part] for row in added], sums) * (len(group) - 1)
            total += statistics.variance(sums) * (len(group) - 1)
    if total < 1e-6:
        assert not found or sum(found.values()) == pytest.approx(1)
        return
    assert sum(found.values()) == pytest.approx(1)
    assert [found[name] for name in "abc"] == pytest.approx([product / total for product in products], abs=1e-6)
    assert all(found[name] == 0 for name, weight in zip("abc", weights, strict=True) if weight == 0)


def test_a_scale_that_hides_a_weight_is_seen_and_normalising_takes_it_away() -> None:
    weights = (0.5, 0.5, 0.0)
    group = [verdict((100.0 * k, (1.0, -1.0, 0.5)[k], 7.0 * k), weights) for k in range(3)]
    plain = variance_shares([group], reward(weights))
    assert plain["a"] > 0.99 and plain["c"] == 0
    normal = variance_shares([group], reward(weights, "normalize_then_sum"))
    assert normal["a"] == pytest.approx(normal["b"], abs=1e-3) and normal["c"] == 0
    opposed = [verdict((float(k), -2.0 * k, 0.0), weights) for k in range(3)]
    assert variance_shares([opposed], reward(weights))["a"] == pytest.approx(-1)


def test_sums_that_are_all_equal_have_no_shares() -> None:
    weights = (1.0, 1.0, 0.0)
    equal = [verdict((0.1 * k, -0.1 * k, float(k)), weights) for k in range(4)]
    assert variance_shares([equal, [verdict((5.0, 0.0, 0.0), weights)]], reward(weights)) == {}


def scored_group(config: TrainConfig, values: list[tuple[float | None, float]], index: int = 0) -> ScoredGroup:
    """Two parts, a with weight 1 and b with weight 0.5."""
    verdicts = [Verdict("scored", (a or 0.0) + 0.5 * b, parts={"a": a, "b": b}, seconds={"a": 0.25}) for a, b in values]
    completions = [Completion([5, 6], [-0.5, -0.1], True, f"text {k}\nof it", each) for k, each in enumerate(verdicts)]
    return ScoredGroup([1], completions, Judge(config).rewards(verdicts), index, 3)


def two_parts(**rollout: Any) -> TrainConfig:
    parts = {"a": {"metric": "bleu"}, "b": {"metric": "completion_words", "weight": 0.5}}
    return build_config(TrainConfig, {"reward": {"parts": parts}, "rollout": rollout}, "test")


def test_a_step_tells_every_part() -> None:
    config = two_parts()
    groups = [scored_group(config, [(1.0, 2.0), (None, 6.0)]), scored_group(config, [(0.0, 0.0), (0.0, 0.0)])]
    metrics = part_metrics(groups, config.reward)
    assert {key.rpartition("/")[2] for key in metrics if key.startswith("part/a/")} == {
        "mean", "std", "spread", "share", "none", "failed", "cut", "seconds",
    }  # fmt: skip
    assert metrics["part/a/none"] == 0.25 and metrics["part/a/seconds"] == 1.0 and metrics["part/b/seconds"] == 0
    assert metrics["part/a/share"] + metrics["part/b/share"] == pytest.approx(1)
    assert metrics["score_mean"] == pytest.approx((2.0 + 3.0 + 0 + 0) / 4)
    assert part_metrics(groups, RewardSection()) == {}


@pytest.mark.parametrize(("above", "names"), [(None, set()), (0.5, {"solved_groups", "top1_accuracy"})])
def test_solved_groups_are_counted_where_something_says_what_is_correct(above: float | None, names: set[str]) -> None:
    keys = two_parts().model_dump(mode="json") | {
        "reward": {"parts": {"a": {"metric": "bleu"}}, "correct_above": above}
    }
    config = build_config(TrainConfig, keys, "test")
    verdicts = [Verdict("truncated", None), Verdict("truncated", None)]
    cut_off = ScoredGroup([1], [Completion([5], [-0.5], False, "x", each) for each in verdicts], [0.0, 0.0], 0, 3)
    metrics = rollout_metrics(LearningStep([cut_off], []), 3, "beam", config.reward)
    assert {"solved_groups", "top1_accuracy"} & metrics.keys() == names


def test_the_seconds_of_a_part_are_those_of_its_calls() -> None:
    """A function that sleeps, beside a metric that does not: what was not asked costs nothing."""
    slow = {"function": "reward_functions:slow", "weight": 1.0}
    config = build_config(
        TrainConfig, {"reward": {"parts": {"slow": slow, "words": {"metric": "completion_words"}}}}, ""
    )
    attempts = [Attempt(Problem("p"), "x", (1,), 0, finished) for finished in (True, True, False)]
    with Judge(config).start(None) as scorer:
        found = scorer.judge(attempts)
    assert (
        sum(each.seconds.get("slow", 0.0) for each in found) > 0.1 > sum(each.seconds.get("words", 0) for each in found)
    )
    assert found[2].seconds == {}
    assert found[0] == Verdict(**{f: getattr(found[0], f) for f in ("outcome", "score", "detail", "parts")}), "no part"


def test_the_log_of_groups_has_a_line_for_every_completion(tmp_path: Path) -> None:
    config = two_parts(skip_uninformative=True, prompts_per_step=1)
    groups = [
        scored_group(config, [(1.0, 2.0), (None, 6.0)]),
        scored_group(config, [(0.0, 0.0), (0.0, 0.0)], 7),
        scored_group(config, [(0.0, 1.0)] * 2, 8),
    ]
    step = choose_groups(groups, config)
    GroupLog(RunFolder(tmp_path), 0).write(1, groups, step.advantages)
    assert not RunFolder(tmp_path).group_log_path.exists()
    log = GroupLog(RunFolder(tmp_path), 2)
    log.write(4, groups, step.advantages)
    log.write(5, groups, step.advantages)
    lines = (tmp_path / "groups.log").read_text().splitlines()
    assert len(lines) == 8
    assert lines[1] == (
        "step 4 · group 1, problem 0, 2 of 2 · scored, a none, b 6 · reward 3 · advantage 0.5 · 'text 1 of it'"
    )
    assert "group 2, problem 7, 1 of 2" in lines[2] and "left out of the update" in lines[2]
    assert lines[4].startswith("step 5 · group 1")
