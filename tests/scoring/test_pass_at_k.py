"""Advantages for the best of k, against all subsets of a group and all groups that can be drawn."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.scoring.advantages import advantages, is_informative
from bgrpo.scoring.pass_at_k import pass_at_k_advantages

# differences that rounding beside the others leaves: 1e-128 and -1 teach, and come to advantages of 0
REWARDS = st.sampled_from([0.0, 1.0, 0.5, -2.0]) | st.floats(-10, 10).map(lambda reward: round(reward, 6))
rewards_of_groups = st.lists(REWARDS, min_size=1, max_size=7)


def by_subsets(rewards: list[float], k: int) -> list[float]:
    k = min(k, len(rewards) - 1)
    if k < 1:
        return [0.0] * len(rewards)
    found = []
    for place, reward in enumerate(rewards):
        others = rewards[:place] + rewards[place + 1 :]
        with_it = [max([reward, *some]) for some in itertools.combinations(others, k - 1)]
        without = [max(some) for some in itertools.combinations(others, k)]
        found.append(k * (math.fsum(with_it) / len(with_it) - math.fsum(without) / len(without)))
    return found


@settings(max_examples=40)
@given(rewards_of_groups, st.integers(1, 9))
def test_it_is_the_mean_over_all_subsets(rewards: list[float], k: int) -> None:
    values = pass_at_k_advantages(np.array(rewards), k)
    assert values == pytest.approx(by_subsets(rewards, k), abs=1e-9)
    assert advantages([rewards], [[-1.0] * len(rewards)], "pass_at_k", k=k)[0] == values.tolist()
    assert is_informative(rewards, "pass_at_k", k) == bool(values.any())


@settings(max_examples=40)
@given(rewards_of_groups)
def test_the_best_of_one_is_leave_one_out(rewards: list[float]) -> None:
    alone = advantages([rewards], [[-1.0] * len(rewards)], "leave_one_out")[0]
    assert pass_at_k_advantages(np.array(rewards), 1) == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize(("size", "right", "k"), [(8, 1, 4), (8, 3, 4), (16, 5, 8), (10, 6, 4)])
def test_of_right_and_wrong_it_is_the_published_closed_form(size: int, right: int, k: int) -> None:
    """Chen et al. 2025, equations for positive and negative answers, without the deviation."""
    mean = 1 - Fraction(math.comb(size - right, k), math.comb(size, k))
    good, bad = 1 - mean, 1 - mean - Fraction(math.comb(size - right - 1, k - 1), math.comb(size - 1, k - 1))
    values = pass_at_k_advantages(np.array([1.0] * right + [0.0] * (size - right)), k) * (1 - k / size) / k
    assert values == pytest.approx([float(good)] * right + [float(bad)] * (size - right), abs=1e-12)


def test_its_mean_over_all_groups_is_the_gradient_of_the_expected_best_of_k() -> None:
    chances, rewards, size, k = np.array([0.6, 0.3, 0.1]), np.array([0.0, 1.0, 3.0]), 4, 2
    found = np.zeros(3)
    for group in itertools.product(range(3), repeat=size):
        values = pass_at_k_advantages(rewards[list(group)], k) / size
        gradient = -values.sum() * chances
        np.add.at(gradient, list(group), values)
        found += chances[list(group)].prod() * gradient

    def best(logits: np.ndarray) -> float:
        of = np.exp(logits) / np.exp(logits).sum()
        pairs = itertools.product(range(3), repeat=k)
        return float(sum(of[list(pair)].prod() * rewards[list(pair)].max() for pair in pairs))

    logits, step = np.log(chances), 1e-5 * np.eye(3)
    expected = [(best(logits + d) - best(logits - d)) / 2e-5 for d in step]
    assert found == pytest.approx(expected, abs=1e-8)


def test_a_group_with_fewer_than_k_below_its_best_teaches_nothing() -> None:
    assert not is_informative([1.0, 1.0, 0.0, 0.0], "pass_at_k", 3) and is_informative([1.0, 1.0, 0.0, 0.0], "mean")
    assert pass_at_k_advantages(np.array([1.0, 1.0, 0.0, 0.0]), 3).tolist() == [0.0] * 4
    assert not is_informative([1.0], "pass_at_k") and not is_informative([0.0, 0.0], "pass_at_k", 2)
