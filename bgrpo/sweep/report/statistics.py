"""What a handful of seeds can and cannot show: intervals and tests for differences paired by seed and by problem.

Seeds are few, so three views are kept apart. The bootstrap over seeds (Efron 1979) assumes nothing but covers too
little: with 3 seeds it is simply the range of the three. Student's t over seeds is exact for normal differences. The
sign-flip test (Fisher 1935) is exact for any symmetric difference, but with n seeds its p-value cannot fall below
2 / 2^n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bgrpo.evaluation.intervals import Interval, bootstrap_interval

BOOTSTRAP_SEED = 0
MAX_ENUMERATED = 16  # seeds; above that, flips are drawn
DRAWN_FLIPS = 100_000
SIGN_FLIP_DECIDES = 6  # fewest seeds with which the sign-flip test can reach 5 %: 2 / 2^6 = 3 %

Key = TypeVar("Key")


@dataclass(frozen=True)
class PairedEffect:
    """A difference between two arms that share seeds and problems.

    Attributes:
        seeds: how many pairs.
        problems: how many problems each was measured on.
        by_seed: one mean difference per seed.
        bootstrap: mean with its 95 % percentile bootstrap interval over seeds.
        seed_interval: mean with its 95 % t interval over seeds; infinite with one seed.
        problem_interval: mean with its 95 % t interval over problems, differences averaged over seeds first.
        p_seeds: two-sided p-value of the t test over seeds.
        p_problems: two-sided p-value of the t test over problems.
        p_sign_flip: two-sided exact p-value of the sign-flip test over seeds.
    """

    seeds: int
    problems: int
    by_seed: list[float]
    bootstrap: Interval
    seed_interval: Interval
    problem_interval: Interval
    p_seeds: float
    p_problems: float
    p_sign_flip: float

    @property
    def mean(self) -> float:
        """Mean difference."""
        return self.bootstrap.mean

    @property
    def p_decision(self) -> float:
        """The largest p-value: a difference counts only when it exceeds the noise of seeds and that of problems.

        With :data:`SIGN_FLIP_DECIDES` seeds or more the sign-flip test must agree as well. An intersection of tests is
        right as often as its best member, so small test sets and equal-looking seeds cannot fake a difference.
        """
        values = [self.p_seeds, self.p_problems]
        return max([*values, self.p_sign_flip] if self.seeds >= SIGN_FLIP_DECIDES else values)


def paired_effect(differences_SN: np.ndarray) -> PairedEffect:
    """Analyse differences [seeds, problems] of two arms, each row one seed that both ran, each column one problem."""
    by_seed_S = differences_SN.mean(axis=1)
    by_problem_N = differences_SN.mean(axis=0)
    return PairedEffect(
        seeds=differences_SN.shape[0],
        problems=differences_SN.shape[1],
        by_seed=by_seed_S.tolist(),
        bootstrap=bootstrap_mean(by_seed_S.tolist()),
        seed_interval=t_interval(by_seed_S.tolist()),
        problem_interval=t_interval(by_problem_N.tolist()),
        p_seeds=t_p_value(by_seed_S.tolist()),
        p_problems=t_p_value(by_problem_N.tolist()),
        p_sign_flip=sign_flip_p_value(by_seed_S.tolist()),
    )


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Mean with its 95 % percentile bootstrap interval."""
    return Interval(float(np.mean(values)), *bootstrap_interval(values, BOOTSTRAP_SEED))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with Student's t interval; without bounds for a single value."""
    from scipy.special import stdtrit  # of scipy.stats, which takes seconds to import, only this is needed

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * _standard_error(values)
    return Interval(mean, mean - half, mean + half)


def within_range(interval: Interval) -> Interval:
    """The interval of a metric's mean without the values that no mean of numbers in [0, 1] has; endless ones stay."""
    if np.isinf(interval.high):
        return interval
    return Interval(interval.mean, max(0.0, interval.low), min(1.0, interval.high))


def t_p_value(values: Sequence[float]) -> float:
    """Two-sided p-value of Student's t test that the mean is 0; 1 for a single value, or when all are 0."""
    from scipy.special import stdtr

    mean = float(np.mean(values))
    if len(values) < 2 or mean == 0:
        return 1.0
    error = _standard_error(values)
    return float(2 * stdtr(len(values) - 1, -abs(mean) / error)) if error > 0 else 0.0


def sign_flip_p_value(values: Sequence[float]) -> float:
    """Two-sided p-value of the test that each value is as likely as its negative (Fisher 1935).

    Exact up to :data:`MAX_ENUMERATED` values; above, from :data:`DRAWN_FLIPS` drawn flips, the observed one counted.
    """
    values_n = np.asarray(values, dtype=np.float64)
    n = len(values_n)
    if n <= MAX_ENUMERATED:
        flips_Fn = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn_Fn = np.random.default_rng(BOOTSTRAP_SEED).choice([-1.0, 1.0], size=(DRAWN_FLIPS, n))
        flips_Fn = np.concatenate([np.ones((1, n)), drawn_Fn])
    sums_F = np.abs(flips_Fn @ values_n)
    tolerance = 1e-12 * np.abs(values_n).sum()
    return float(np.mean(sums_F >= abs(values_n.sum()) - tolerance))


def smallest_sign_flip_p(seeds: int) -> float:
    """The least p-value that the sign-flip test can give with so many seeds."""
    return 2.0 / 2**seeds


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values adjusted for testing several differences at once (Holm 1979); same keys, same order."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for i, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[key]))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


def _standard_error(values: Sequence[float]) -> float:
    values_n = np.asarray(values, dtype=np.float64)
    if np.ptp(values_n) <= 1e-12 * np.abs(values_n).max():  # equal up to rounding
        return 0.0
    return float(values_n.std(ddof=1) / np.sqrt(len(values_n)))
