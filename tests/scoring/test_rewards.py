from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.scoring.rewards import group_rewards
from bgrpo.tasks.base import Outcome

outcome_lists = st.lists(st.sampled_from([str(outcome) for outcome in Outcome]), min_size=1, max_size=50)
kinds = st.sampled_from(["simple", "rank", "reverse_rank"])


def verdicts(outcomes: Sequence[str], scores: Sequence[float | None] = ()) -> list[Verdict]:
    return [Verdict(outcome, score) for outcome, score in zip_longest(outcomes, scores)]


def test_the_best_beam_has_rank_one() -> None:
    assert group_rewards(verdicts(["correct", "correct", "wrong"]), "rank", tau=2.0) == [1.0, math.exp(-0.5), 0.0]
    assert group_rewards(verdicts(["correct", "correct", "wrong"]), "reverse_rank", tau=2.0) == [
        1.0,
        math.exp(0.5),
        0.0,
    ]


def test_the_scale_is_tau_whatever_the_width() -> None:
    rewards = group_rewards(verdicts(["wrong"] * 44 + ["correct"]), "rank", tau=45.0, wrong_reward=-0.5)
    assert rewards[:44] == [-0.5] * 44
    assert rewards[44] == pytest.approx(math.exp(-44 / 45))


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome != Outcome.CORRECT])
def test_only_correct_earns(outcome: Outcome) -> None:
    assert group_rewards(verdicts([str(outcome), "correct"]), "simple", tau=1.0, wrong_reward=-1.0) == [-1.0, 1.0]


@given(outcome_lists, kinds, st.floats(0.5, 50))
def test_balanced_groups_sum_to_zero(outcomes: list[str], kind: str, tau: float) -> None:
    plain = group_rewards(verdicts(outcomes), kind, tau, wrong_reward=0.25)
    balanced = group_rewards(verdicts(outcomes), kind, tau, wrong_reward=0.25, balance_negatives=True)
    correct = outcomes.count("correct")
    if correct in (0, len(outcomes)):
        assert balanced == plain
        return
    assert sum(balanced) == pytest.approx(0.0, abs=1e-9 * sum(map(abs, balanced)))
    wrong = {reward for reward, outcome in zip(balanced, outcomes, strict=True) if outcome != "correct"}
    assert len(wrong) == 1
    assert all(b == p for b, p, o in zip(balanced, plain, outcomes, strict=True) if o == "correct")


def test_function_rewards_are_the_scores_except_where_nothing_was_scored() -> None:
    outcomes = ["correct", "wrong", "timeout", "truncated", "error"]
    rewards = group_rewards(verdicts(outcomes, [0.75, -0.25, 0.0, 0.0, 0.0]), "function", 1.0, wrong_reward=-2.0)
    assert rewards == [0.75, -0.25, -2.0, -2.0, -2.0]
    assert group_rewards(verdicts(["timeout", "truncated"]), "function", 1.0, wrong_reward=-2.0) == [-2.0, -2.0]


def test_a_missing_score_is_refused() -> None:
    with pytest.raises(UserError, match=r"outcome correct came back without a score"):
        group_rewards(verdicts(["correct"]), "function", 1.0)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'ranked': expected simple, rank, reverse_rank or function"):
        group_rewards(verdicts(["correct"]), "ranked", 1.0)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"kind": "reverse_rank", "tau": 1e-3}, []),
        ({"kind": "reverse_rank", "tau": 0.01}, []),
        ({"kind": "simple", "tau": 1.0, "wrong_reward": math.nan}, []),
        ({"kind": "rank", "tau": 1.0, "wrong_reward": -math.inf}, []),
        ({"kind": "function", "tau": 1.0, "wrong_reward": 1e13}, [1.0]),
        ({"kind": "function", "tau": 1.0}, [math.nan]),
        ({"kind": "function", "tau": 1.0, "balance_negatives": True}, [math.inf]),
    ],
)
def test_a_reward_that_no_update_can_bear_is_refused(options: dict[str, Any], scores: list[float]) -> None:
    with pytest.raises(UserError, match=r"the reward of rank \d of 3 is .*: reward\.kind=.*, tau=.*, wrong_reward="):
        group_rewards(verdicts(["correct", "correct", "timeout"], [*scores, 1.0]), **options)
