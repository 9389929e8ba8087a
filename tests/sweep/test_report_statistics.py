"""Intervals and tests against closed forms, tables, brute force and SciPy's own permutation test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bgrpo.evaluation.intervals import Interval
from bgrpo.sweep.report.paired_statistics import (
    bootstrap_mean,
    holm,
    paired_effect,
    sign_flip_p_value,
    t_test,
    within_range,
)

T_QUANTILES = {2: 12.706204736, 3: 4.302652730, 5: 2.776445105, 10: 2.262157163}  # 97.5 %, by number of values: tables
SMALL = st.floats(-1, 1).map(lambda x: round(x, 3))


@pytest.mark.parametrize("n", T_QUANTILES)
def test_the_t_interval_is_the_tables(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    half = T_QUANTILES[n] * math.sqrt(sum((values - values.mean()) ** 2) / (n - 1) / n)
    interval, _ = t_test(values.tolist())
    assert interval == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=1e-7)


@given(st.lists(SMALL, min_size=2, max_size=3))
def test_the_t_test_has_its_closed_form_for_one_and_two_degrees_of_freedom(values: list[float]) -> None:
    assume(np.ptp(values) > 1e-3)
    n = len(values)
    t = abs(np.mean(values)) / (np.std(values, ddof=1) / math.sqrt(n))
    closed = 1 - 2 / math.pi * math.atan(t) if n == 2 else 1 - t / math.sqrt(2 + t * t)
    assert t_test(values)[1] == pytest.approx(closed, abs=1e-9)


def test_a_single_value_and_equal_values() -> None:
    assert t_test([0.3]) == ((0.3, -math.inf, math.inf), 1.0)
    assert t_test([0.0, 0.0, 0.0]) == ((0.0, 0.0, 0.0), 1.0)
    assert t_test([0.1 + 0.2, 0.3, 0.3])[1] == 0.0  # equal up to rounding
    assert sign_flip_p_value([0.0, 0.0]) == 1.0


@given(st.lists(SMALL, min_size=1, max_size=7))
def test_sign_flips_are_those_of_brute_force(values: list[float]) -> None:
    observed = abs(math.fsum(values))
    sums = [
        abs(math.fsum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    p = sign_flip_p_value(values)
    assert p == sum(total >= observed - 1e-9 for total in sums) / len(sums)
    assert p >= 2 / 2 ** len(values)
    assert p == sign_flip_p_value([-1000 * value for value in values])


def test_many_seeds_are_flipped_at_random() -> None:
    values = np.random.default_rng(5).normal(0.35, 1, 18)
    flips_Fn = 1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)
    exact = np.mean(np.abs(flips_Fn @ values) >= abs(values.sum()) - 1e-9)
    error = 2 * math.sqrt(exact / 2 * (1 - exact / 2) / 99_999)  # twice that of one side
    assert sign_flip_p_value(values.tolist()) == pytest.approx(exact, abs=4 * error)
    assert 0 < sign_flip_p_value([1.0] * 40) < 1e-4


def test_the_bootstrap_of_three_is_their_range_and_of_many_is_normal() -> None:
    assert bootstrap_mean([0.1, 0.5, 0.3]) == pytest.approx((0.3, 0.1, 0.5))
    values = np.random.default_rng(1).normal(0, 1, 2000)
    mean, low, high = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


@settings(max_examples=30)  # each collects garbage, inside statsmodels
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holms_adjustment_rejects_what_his_procedure_rejects(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for i, name in enumerate(
            sorted(p_values, key=lambda name: p_values[name])
        ):  # step down, stop at the first miss
            if p_values[name] * (len(p_values) - i) > level:
                break
            rejected.add(name)
        assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_an_effect_keeps_the_noise_of_seeds_and_of_problems_apart() -> None:
    differences_SN = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, -1.0, 0.0]])
    effect = paired_effect(differences_SN)
    assert effect.by_seed == [0.25, 0.5, 0.0]
    assert effect.mean == pytest.approx(0.25)
    t = math.sqrt(3)  # over seeds: mean 1/4, standard deviation 1/4; two degrees of freedom
    assert effect.p_seeds == pytest.approx(1 - t / math.sqrt(2 + t * t))
    t = 0.25 / math.sqrt((0.75**2 + (1 / 12) ** 2 + (7 / 12) ** 2 + 0.25**2) / 3 / 4)  # over problems; three
    assert effect.p_problems == pytest.approx(
        1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t))
    )
    assert effect.p_seeds < effect.p_decision == effect.p_problems


def test_from_six_seeds_on_the_sign_flip_test_must_agree() -> None:
    by_seed = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -0.01])
    differences_SN = np.repeat(by_seed[:, None], 50, axis=1)
    six, five = paired_effect(differences_SN), paired_effect(differences_SN[1:])
    assert six.p_seeds < 0.05 < six.p_sign_flip == six.p_decision
    assert five.p_decision == five.p_seeds


def test_an_interval_of_a_metric_stays_within_its_range() -> None:
    assert within_range(Interval(0.96, 0.9, 1.013)) == Interval(0.96, 0.9, 1.0)
    assert within_range(Interval(0.02, -0.1, 0.14)) == Interval(0.02, 0.0, 0.14)
    assert within_range(t_test([0.5])[0]) == Interval(0.5, -math.inf, math.inf), "one seed still has no interval"
