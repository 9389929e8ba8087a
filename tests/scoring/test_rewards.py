"""From verdicts to rewards: right or wrong, graded scores, ranks, and what has no reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.scoring.rewards import RewardRule, group_rewards, ranks_by
from bgrpo.tasks.base import Outcome

UNKNOWN = [Outcome.TIMEOUT, Outcome.ERROR, Outcome.UNSCORED]
outcome_lists = st.lists(st.sampled_from([str(outcome) for outcome in Outcome]), min_size=1, max_size=50)
kinds = st.sampled_from(["simple", "rank", "reverse_rank", "unlikely"])


def verdicts(outcomes: Sequence[str], scores: Sequence[float | None] = ()) -> list[Verdict]:
    return [Verdict(outcome, score) for outcome, score in zip_longest(outcomes, scores)]


def scored(*scores: float | None) -> list[Verdict]:
    return [Verdict("unscored" if score is None else "scored", score) for score in scores]


def test_the_best_beam_has_rank_one() -> None:
    group = verdicts(["correct", "correct", "wrong"])
    assert group_rewards(group, RewardRule("rank", tau=2.0)) == [1.0, math.exp(-0.5), 0.0]
    assert group_rewards(group, RewardRule("reverse_rank", tau=2.0)) == [1.0, math.exp(0.5), 0.0]


def test_the_scale_is_tau_whatever_the_width() -> None:
    rewards = group_rewards(verdicts(["wrong"] * 44 + ["correct"]), RewardRule("rank", 45.0, wrong_reward=-0.5))
    assert rewards[:44] == [-0.5] * 44
    assert rewards[44] == pytest.approx(math.exp(-44 / 45))


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome != Outcome.CORRECT])
def test_only_correct_earns_and_what_failed_is_unknown(outcome: Outcome) -> None:
    rewards = group_rewards(verdicts([str(outcome), "correct"]), RewardRule("simple", tau=1.0, wrong_reward=-1.0))
    assert rewards == [None if outcome in UNKNOWN else -1.0, 1.0]


@given(outcome_lists, kinds, st.floats(0.5, 50))
def test_balanced_groups_sum_to_zero(outcomes: list[str], kind: str, tau: float) -> None:
    plain = group_rewards(verdicts(outcomes), RewardRule(kind, tau, wrong_reward=0.25))
    balanced = group_rewards(verdicts(outcomes), RewardRule(kind, tau, wrong_reward=0.25, balance_negatives=True))
    known = [outcome for outcome in outcomes if outcome not in UNKNOWN]
    if known.count("correct") in (0, len(known)):
        assert balanced == plain
        return
    there = [reward for reward in balanced if reward is not None]
    assert len(there) == len(known)
    assert sum(there) == pytest.approx(0.0, abs=1e-9 * sum(map(abs, there)))
    assert len({r for r, o in zip(balanced, outcomes, strict=True) if r is not None and o != "correct"}) == 1
    assert all(b == p for b, p, o in zip(balanced, plain, outcomes, strict=True) if o == "correct")


WEIGHTS = {"a": 1.0}


def test_graded_scores_are_the_rewards_except_where_nothing_was_scored() -> None:
    outcomes = ["scored", "scored", "timeout", "truncated", "error", "unscored", "truncated"]
    group = verdicts(outcomes, [0.75, -0.25, None, None, None, None, 0.5])
    rewards = group_rewards(group, RewardRule("simple", 1.0, WEIGHTS, wrong_reward=-2.0))
    assert rewards == [0.75, -0.25, None, -2.0, None, None, 0.5]


def test_ranks_shape_graded_scores() -> None:
    assert group_rewards(scored(0.5, 1.0), RewardRule("rank", 2.0, WEIGHTS)) == [0.5, math.exp(-0.5)]
    halves = group_rewards(scored(1.0, 1.0, 1.0, 1.0), RewardRule("unlikely", 1.0, WEIGHTS, unlikely_share=0.5))
    assert halves == [0.625, 0.75, 0.875, 1.0]
    by_rank = group_rewards(scored(1.0, 1.0), RewardRule("unlikely", 1.0, WEIGHTS, unlikely_share=1.0), ranks=[2, 1])
    assert by_rank == [1.0, 0.5]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), kinds)
def test_of_equal_scores_rank_decides_the_same_way_below_zero_as_above(scores: list[float], kind: str) -> None:
    lowest = min(0.0, *scores)
    rewards = group_rewards(scored(*scores), RewardRule(kind, 3.0, WEIGHTS))
    factors = group_rewards(scored(*[1.0] * len(scores)), RewardRule(kind, 3.0, WEIGHTS))
    for score, factor, reward in zip(scores, factors, rewards, strict=True):
        assert factor is not None
        assert reward == pytest.approx(lowest + (score - lowest) * factor, abs=1e-9)
        assert factor == (pytest.approx(1.0) if kind == "simple" else factor)


def test_parts_are_normalised_before_they_are_weighted() -> None:
    """GDPO: a part in the thousands does not hide one in hundredths; a constant one adds nothing."""
    parts = [{"large": 1000.0 * i, "small": 0.01 * (i % 2), "flat": 3.0} for i in range(4)]
    group = [Verdict("scored", 0.0, parts=values) for values in parts]
    rule = RewardRule("simple", 1.0, {"large": 1.0, "small": 2.0, "flat": 5.0}, normalize=True)
    rewards = group_rewards(group, rule)
    deviation = math.sqrt(sum((i - 1.5) ** 2 for i in range(4)) / 3)
    small = 0.005 / (math.sqrt(4 * 0.005**2 / 3) + 1e-4)
    expected = [(i - 1.5) * 1000 / (1000 * deviation + 1e-4) + 2 * (small if i % 2 else -small) for i in range(4)]
    assert rewards == pytest.approx(expected)
    group[1] = Verdict("scored", 0.0, parts=parts[1] | {"small": None})
    group[2] = Verdict("error", None, parts=parts[2] | {"large": None})
    again = group_rewards(group, rule)
    assert again[2] is None and again[1] == pytest.approx((1000 - 4000 / 3) / (math.sqrt(7 / 3) * 1000 + 1e-4))


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=9))
def test_ranks_by_log_probability(logprobs: list[float]) -> None:
    ranks = ranks_by(logprobs)
    assert sorted(ranks) == list(range(1, len(logprobs) + 1))
    order = [logprobs[ranks.index(rank)] for rank in sorted(ranks)]
    assert order == sorted(logprobs, reverse=True)


@pytest.mark.parametrize(
    ("rule", "score"),
    [
        (RewardRule("reverse_rank", 1e-3), None),
        (RewardRule("reverse_rank", 0.01), None),
        (RewardRule("simple", 1.0, wrong_reward=math.nan), None),
        (RewardRule("rank", 1.0, wrong_reward=-math.inf), None),
        (RewardRule("simple", 1.0, WEIGHTS, wrong_reward=1e13), 1.0),
        (RewardRule("simple", 1.0, WEIGHTS), math.nan),
        (RewardRule("simple", 1.0, WEIGHTS, balance_negatives=True), math.inf),
    ],
)
def test_a_reward_that_no_update_can_bear_is_refused(rule: RewardRule, score: float | None) -> None:
    with pytest.raises(UserError, match=r"a reward is .*: reward\.kind=.*, tau=.*, wrong_reward="):
        group_rewards(verdicts(["correct", "correct", "truncated"], [score, 1.0]), rule)
