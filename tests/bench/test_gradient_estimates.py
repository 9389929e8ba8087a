"""The figures of ``bgrpo bench advantages``: closed forms where there are some, and what must be without bias is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bgrpo.bench.gradients.gradient_picture import SIZES, draw_gradients, gradient_tables
from bgrpo.bench.gradients.toy_estimates import (
    ESTIMATORS,
    Estimator,
    Quality,
    Toy,
    beams,
    estimates,
    long_tail,
    quality,
)

GROUPS = 400
SMALL = Toy(np.log([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 0.5]))


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    def expected(logits: np.ndarray) -> float:
        return float(np.exp(logits) @ SMALL.rewards_N / np.exp(logits).sum())

    by_difference = [(expected(SMALL.logps_N + d) - expected(SMALL.logps_N - d)) / 2e-5 for d in 1e-5 * np.eye(3)]
    assert SMALL.gradient_N == pytest.approx(by_difference, abs=1e-9)


def test_all_pairs_of_samples_have_the_gradient_as_their_mean_and_the_variance_that_is_measured() -> None:
    leave_one_out = ESTIMATORS[0]
    chances = np.exp(SMALL.logps_N)
    mean, square = np.zeros(3), 0.0
    for pair in itertools.product(range(3), repeat=2):
        weight = chances[list(pair)].prod()
        difference = SMALL.rewards_N[pair[0]] - SMALL.rewards_N[pair[1]]
        estimate = difference / 2 * (np.eye(3)[pair[0]] - np.eye(3)[pair[1]])
        mean, square = mean + weight * estimate, square + weight * float(estimate @ estimate)
    assert mean == pytest.approx(SMALL.gradient_N, abs=1e-12)
    found = quality(SMALL, leave_one_out, 2, 20_000)
    spread = math.sqrt(square - float(mean @ mean)) / np.linalg.norm(mean)
    assert found.spread == pytest.approx(spread, rel=0.05) and found.bias < 3 * found.error


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=[each.name for each in ESTIMATORS])
@pytest.mark.parametrize("size", [3, 8])
def test_what_has_no_bias_shows_none_and_beams_have_no_spread(estimator: Estimator, size: int) -> None:
    found = quality(long_tail(), estimator, size, GROUPS)
    if not estimator.has_bias:
        assert found.bias < 3 * found.error
    assert (found.spread == 0) == (estimator.draw is beams)


def test_mean_pushes_down_a_tail_that_the_gradient_leaves_alone() -> None:
    """The reason for ``probability_weighted``: of beams, the last wrong one is pushed as hard as the favourite."""
    toy = long_tail()
    mean, weighted = (estimates(toy, ESTIMATORS[place], 10, 1, np.random.default_rng(0))[0] for place in (2, 3))
    assert not toy.rewards_N[[0, 9]].any() and toy.logps_N[0] - toy.logps_N[9] > math.log(10)
    shares = [of[9] / of[0] for of in (toy.gradient_N, weighted, mean)]
    assert shares[0] == pytest.approx(math.exp(toy.logps_N[9] - toy.logps_N[0]), rel=1e-6)
    assert shares[1] < 2 * shares[0] and shares[2] > 0.8
    biases = [quality(toy, ESTIMATORS[place], 10, 1).bias for place in (2, 3)]
    assert biases[0] > 5 * biases[1]


def test_the_tables_and_the_picture_hold_every_estimator() -> None:
    curves = {each.name: {size: Quality(0.1, 0.0, 0.2) for size in SIZES} for each in ESTIMATORS}
    assert [table.row_count for table in gradient_tables(curves)] == [len(ESTIMATORS)] * 2
    (legend,) = draw_gradients(curves).legends
    assert [text.get_text() for text in legend.get_texts()] == [each.name for each in ESTIMATORS]
