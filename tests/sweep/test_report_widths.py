"""The beam width that a target accuracy needs, and the ranks of first correct beams."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fabricated_sweep import comparison
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.evaluation.metrics import Evaluation, rank_score
from bgrpo.sweep.report.beam_widths import first_correct_ranks, solved_by_width, width_needed, width_savings

WIDTHS = [1, 2, 4, 8]


def test_widths_between_measured_ones_are_interpolated_on_a_logarithmic_scale() -> None:
    accuracies = [0.2, 0.4, 0.6, 0.8]
    assert width_needed(WIDTHS, accuracies, 0.4) == pytest.approx(2)
    assert width_needed(WIDTHS, accuracies, 0.5) == pytest.approx(math.sqrt(8))
    assert width_needed(WIDTHS, accuracies, 0.1) == 1
    assert width_needed(WIDTHS, accuracies, 0.81) == math.inf


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_needs_less(accuracies: list[float], low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    assert width_needed(WIDTHS, accuracies, low) <= width_needed(WIDTHS, accuracies, high) + 1e-9
    needed = width_needed(WIDTHS, accuracies, high)
    assert needed == math.inf if high > max(accuracies) + 1e-9 else 1 <= needed <= 8


def _evaluation(solved: dict[str, list[float]]) -> Evaluation:
    return Evaluation(["2_2"] * len(next(iter(solved.values()))), solved, {}, "digest")


def test_the_same_policy_needs_the_same_width() -> None:
    pair = comparison(0.0, np.random.default_rng(1).normal(0, 1.5, 400), np.random.default_rng(2))
    savings = width_savings(pair.before, [pair.before, pair.before])
    assert [saving.width for saving in savings] == [3, 5, 10]
    for saving in savings:
        assert saving.needed.mean == pytest.approx(saving.width)
        assert saving.saving.mean == pytest.approx(0)


def test_a_better_policy_needs_less_and_a_worse_one_cannot_reach_it() -> None:
    before = _evaluation({"greedy": [1.0] * 20 + [0.0] * 80, "beam@10": [1.0] * 60 + [0.0] * 40})
    better = _evaluation({"greedy": [1.0] * 60 + [0.0] * 40, "beam@10": [1.0] * 90 + [0.0] * 10})
    worse = _evaluation({"greedy": [1.0] * 10 + [0.0] * 90, "beam@10": [1.0] * 20 + [0.0] * 80})
    (saving,) = width_savings(before, [better])
    assert (saving.width, saving.target, saving.needed.mean) == (10, 0.6, 1.0)
    assert saving.saving == pytest.approx((0.9, 0.9, 0.9))
    (lost,) = width_savings(before, [worse])
    assert lost.needed.mean == math.inf
    assert lost.saving.mean == -math.inf


def test_the_interval_covers_and_is_the_same_every_time() -> None:
    difficulty_N = np.random.default_rng(1).normal(0, 1.5, 300)
    pairs = [comparison(0.6, difficulty_N, np.random.default_rng(seed)) for seed in range(3)]
    first, again = (width_savings(pairs[0].before, [pair.after for pair in pairs]) for _ in range(2))
    assert first == again
    for saving in first:
        assert 1 <= saving.needed.low <= saving.needed.mean <= saving.needed.high < saving.width


def test_width_one_is_greedy_and_other_searches_are_no_width() -> None:
    solved = solved_by_width(_evaluation({"pass@5": [1.0], "beam@5": [1.0], "top1": [0.0], "greedy": [0.0]}))
    assert {width: values.tolist() for width, values in solved.items()} == {1: [0.0], 5: [1.0]}
    assert width_savings(_evaluation({"greedy": [0.0]}), [_evaluation({"greedy": [1.0]})]) == []


def test_ranks_come_back_from_rank_scores() -> None:
    ranks = [1, 1, 1, 2, 5, 10, 0, 0]
    scores = [rank_score([position == rank for position in range(1, 11)]) for rank in ranks]
    counts = first_correct_ranks(_evaluation({"beam_rank_score": scores}))
    assert counts == {rank: ranks.count(rank) for rank in range(11)}
    assert first_correct_ranks(_evaluation({"greedy": [1.0]})) == {}
