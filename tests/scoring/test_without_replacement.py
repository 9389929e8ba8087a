"""Estimates from groups drawn without replacement, against sums over all sets that can be drawn."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.scoring.advantages import advantages, is_informative
from bgrpo.scoring.without_replacement import inclusion_weights, set_advantages

PROBABILITIES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
REWARDS = np.array([0.0, 1.0, -0.5, 2.0, 0.3, 5.0])


def chance_of_sets(probabilities: np.ndarray, size: int) -> dict[frozenset[int], float]:
    """By adding up the orders in which a set can be drawn."""
    found: dict[frozenset[int], float] = defaultdict(float)
    for order in itertools.permutations(range(len(probabilities)), size):
        chance, left = 1.0, 1.0
        for item in order:
            chance *= probabilities[item] / left
            left -= probabilities[item]
        found[frozenset(order)] += chance
    return found


def exact_gradient(probabilities: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Of the expected reward, with respect to the logits of a softmax."""
    return probabilities * (rewards - (probabilities * rewards).sum())


def estimated_gradient(weights: np.ndarray, chosen: list[int], probabilities: np.ndarray) -> np.ndarray:
    """The sum of weights times the gradients of log-probabilities, with respect to the logits."""
    gradient = -weights.sum() * probabilities
    gradient[chosen] += weights
    return gradient


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_set_estimator_has_no_bias(size: int) -> None:
    expected, plain = np.zeros(6), np.zeros(6)
    for items, chance in chance_of_sets(PROBABILITIES, size).items():
        chosen = sorted(items)
        rest = 1 - PROBABILITIES[chosen].sum()
        values = set_advantages(REWARDS[chosen], np.log(PROBABILITIES[chosen]), rest)
        expected += chance * estimated_gradient(values, chosen, PROBABILITIES)
        minimum_risk = inclusion_weights(np.log(PROBABILITIES[chosen]), None)
        minimum_risk = minimum_risk * (REWARDS[chosen] - (minimum_risk * REWARDS[chosen]).sum())
        plain += chance * estimated_gradient(minimum_risk, chosen, PROBABILITIES)
    assert expected == pytest.approx(exact_gradient(PROBABILITIES, REWARDS), abs=1e-9)
    assert np.abs(plain - exact_gradient(PROBABILITIES, REWARDS)).max() > 1e-3, "the test must notice a biased one"


def test_its_baseline_takes_out_what_all_rewards_share() -> None:
    """A constant added to all rewards makes the estimates spread far less than without a baseline."""
    shift = 100.0
    spread = {"with": 0.0, "without": 0.0}
    exact = exact_gradient(PROBABILITIES, REWARDS)
    for items, chance in chance_of_sets(PROBABILITIES, 3).items():
        chosen = sorted(items)
        rest, logs = 1 - PROBABILITIES[chosen].sum(), np.log(PROBABILITIES[chosen])
        values = set_advantages(REWARDS[chosen] + shift, logs, rest)
        without = np.array([set_advantages(np.eye(3)[k], logs, rest)[k] / (1 - math.exp(logs[k])) for k in range(3)])
        for name, weights in (("with", values), ("without", without * (REWARDS[chosen] + shift))):
            gradient = estimated_gradient(weights, chosen, PROBABILITIES)
            spread[name] += chance * float(((gradient - exact) ** 2).sum())
    assert spread["with"] < 0.1 * spread["without"]


def test_the_integral_holds_where_probabilities_are_tiny_or_nearly_all() -> None:
    """Against sums over orders, in logarithms where the numbers allow for it."""
    for logs in ([-0.5, -2.0, -60.0], [-40.0, -50.0, -60.0], [-0.7, -0.72, -5.0], [-1e-3, -8.0]):
        probabilities = np.exp(np.array(logs))
        rest = 1 - probabilities.sum()
        padded = [*probabilities.tolist(), rest]
        size = len(logs)

        def chance(of: list[int], among: list[float]) -> float:
            total = 0.0
            for order in itertools.permutations(of):
                part, left = 1.0, sum(among)
                for item in order:
                    part *= among[item] / left
                    left -= among[item]
                total += part
            return total

        everything = chance(list(range(size)), padded)
        for k in range(size):
            others = [item for item in range(size) if item != k]
            among = [0.0 if item == k else value for item, value in enumerate(padded)]
            ratio = math.exp(logs[k]) * chance(others, among) / everything
            value = set_advantages(np.eye(size)[k], np.array(logs), rest)[k]
            assert value == pytest.approx(ratio * (1 - math.exp(logs[k])), rel=1e-7)


def test_where_everything_was_drawn_both_are_the_gradient() -> None:
    logs = np.log(PROBABILITIES)
    gradient = exact_gradient(PROBABILITIES, REWARDS)
    assert set_advantages(REWARDS, logs, 0.0) == pytest.approx(gradient)
    for kind in ("set_estimator", "importance_weighted"):
        values = advantages([REWARDS.tolist()], [logs.tolist()], kind, kappas=[None])[0]
        assert values == pytest.approx((6 * gradient).tolist())


@given(
    st.lists(st.tuples(st.floats(-80, -0.01), st.floats(-10, 10)), min_size=2, max_size=12),
    st.floats(-90, 5),
)
@settings(max_examples=150, deadline=None)
def test_importance_weights_follow_their_formula(pairs: list[tuple[float, float]], kappa: float) -> None:
    logprobs, rewards = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    raw = [math.exp(logprob) / -math.expm1(-math.exp(logprob - kappa)) for logprob in logprobs]
    weights = [value / math.fsum(raw) for value in raw]
    assert inclusion_weights(np.array(logprobs), kappa) == pytest.approx(weights, rel=1e-6)
    mean = math.fsum(w * r for w, r in zip(weights, rewards, strict=True))
    expected = [len(pairs) * w * (r - mean) for w, r in zip(weights, rewards, strict=True)]
    found = advantages([rewards], [logprobs], "importance_weighted", kappas=[kappa])[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_could_not_be_scored_has_no_part_in_the_estimate() -> None:
    """As if it did not exist: the others keep their probabilities, and what was not drawn its own."""
    logs = np.log(PROBABILITIES[:4])
    values = advantages([[0.0, None, -0.5, 2.0]], [logs.tolist()], "set_estimator", kappas=[-2.0])[0]
    rest = 1 - PROBABILITIES[:4].sum()
    expected = 3 * set_advantages(np.array([0.0, -0.5, 2.0]), logs[[0, 2, 3]], rest)
    assert values[1] == 0 and [values[0], *values[2:]] == pytest.approx(expected.tolist())
    assert advantages([[None, None]], [[-1.0, -2.0]], "set_estimator", kappas=[-3.0]) == [[0.0, 0.0]]


def test_equal_rewards_teach_the_set_estimator_unless_they_are_0() -> None:
    assert is_informative([1.0, 1.0], "set_estimator") and not is_informative([0.0, 0.0], "set_estimator")
    assert not is_informative([1.0, 1.0], "importance_weighted")
