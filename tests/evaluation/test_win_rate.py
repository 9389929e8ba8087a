"""Win rates against the starting policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import RANK_WIDTH, WIN_RATE, TrainConfig, build_config
from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.evaluation.win_rate import wins, with_win_rate

REWARDS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan]), min_size=1, max_size=12)
GRADED = {"parts": {"overlap": {"metric": "rouge_l"}, "length": {"metric": "completion_words", "weight": 0}}}


def evaluation(rewards: list[float], **others: list[float]) -> Evaluation:
    return Evaluation([""] * len(rewards), {"greedy_reward": rewards} | others, digest="d")


@pytest.mark.parametrize(
    ("now", "start", "expected"),
    [(1.0, 0.5, 1.0), (0.5, 0.5, 0.5), (-2.0, -1.0, 0.0), (math.nan, 0.0, None), (0.0, math.nan, None)],
)
def test_a_problem_is_won_drawn_or_lost(now: float, start: float, expected: float | None) -> None:
    (found,) = wins([now], [start])
    assert math.isnan(found) if expected is None else found == expected


@given(REWARDS, st.randoms(use_true_random=False))
def test_two_policies_share_every_problem(now: list[float], shuffle: Any) -> None:
    start = shuffle.sample(now, len(now))
    for one, other in zip(wins(now, start), wins(start, now), strict=True):
        assert math.isnan(one) == math.isnan(other)
        assert math.isnan(one) or one + other == 1


def test_the_table_before_and_after_has_it_with_an_interval() -> None:
    start, now = evaluation([0.0, 1.0, 2.0, 3.0]), evaluation([0.5, 1.0, 1.0, 4.0])
    comparison = EvaluationComparison(with_win_rate(start, start), with_win_rate(now, start))
    (row,) = (row for row in comparison.rows() if row.metric == WIN_RATE)
    assert tuple(row.before) == (0.5, 0.5, 0.5)
    assert row.after.mean == (1 + 0.5 + 0 + 1) / 4 and row.after.low < row.after.mean < row.after.high
    assert row.difference.mean == row.after.mean - 0.5


def test_there_is_none_without_scores_or_on_other_problems() -> None:
    solved = Evaluation(["", ""], {"greedy": [1.0, 0.0]}, digest="d")
    assert with_win_rate(solved, solved) == solved
    lost = evaluation([math.nan, math.nan])
    assert WIN_RATE not in with_win_rate(lost, lost).values
    with pytest.raises(UserError, match="the same problems"):
        with_win_rate(lost, replace(lost, digest="other"))


def test_it_chooses_checkpoints_of_graded_rewards_only() -> None:
    config = build_config(TrainConfig, {"reward": GRADED, "checkpoint": {"metric": "win_rate"}}, "test")
    assert config.checkpoint_metric == WIN_RATE in config.reward.run_metrics([RANK_WIDTH], 0)
    with pytest.raises(UserError, match=r"checkpoint\.metric=win_rat: .* did you mean 'win_rate'"):
        build_config(TrainConfig, {"reward": GRADED, "checkpoint": {"metric": "win_rat"}}, "test")
    with pytest.raises(UserError, match=r"checkpoint\.metric=win_rate: validations measure beam_rank_score"):
        build_config(TrainConfig, {"checkpoint": {"metric": "win_rate"}}, "test")


def test_a_part_has_the_name_of_the_sum_only_where_it_is_the_sum() -> None:
    alone = {"reward": {"metric": "bleu"}}
    assert build_config(TrainConfig, {"reward": {"parts": alone}}, "test").reward.parts["reward"].metric == "bleu"
    with pytest.raises(UserError, match=r"parts\.reward: metrics call the weighted sum of all parts so"):
        build_config(TrainConfig, {"reward": {"parts": alone | {"other": {"metric": "bleu"}}}}, "test")
