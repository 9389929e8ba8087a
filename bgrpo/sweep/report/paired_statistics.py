"""What a handful of seeds can and cannot show: intervals and tests for differences paired by seed and by problem.

Seeds are few, so three views are kept apart. The bootstrap over seeds (Efron 1979) assumes nothing but covers too
little: with 3 seeds it is simply the range of the three. Student's t over seeds is exact for normal differences. The
sign-flip test (Fisher 1935) is exact for any symmetric difference, but with n seeds its p-value cannot fall below
2 / 2^n. SciPy and statsmodels do the tests and Holm's adjustment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bgrpo.evaluation.intervals import Interval, bootstrap_interval

BOOTSTRAP_SEED = 0
FLIPS = 99_999  # all flips of up to 16 seeds; above that, so many are drawn
SIGN_FLIP_DECIDES = 6  # fewest seeds with which the sign-flip test can reach 5 %: 2 / 2^6 = 3 %


@dataclass(frozen=True)
class PairedEffect:
    """A difference between two arms that share seeds and problems. Intervals are of 95 %, p-values two-sided."""

    seeds: int
    problems: int
    by_seed: list[float]  # one mean difference per seed
    bootstrap: Interval  # percentile bootstrap over seeds
    seed_interval: Interval  # t over seeds; infinite with one seed
    problem_interval: Interval  # t over problems, differences averaged over seeds first
    p_seeds: float  # t test over seeds
    p_problems: float  # t test over problems
    p_sign_flip: float  # sign-flip test over seeds

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
    by_seed = differences_SN.mean(axis=1).tolist()
    seed_interval, p_seeds = t_test(by_seed)
    problem_interval, p_problems = t_test(differences_SN.mean(axis=0).tolist())
    return PairedEffect(
        seeds=differences_SN.shape[0],
        problems=differences_SN.shape[1],
        by_seed=by_seed,
        bootstrap=bootstrap_mean(by_seed),
        seed_interval=seed_interval,
        problem_interval=problem_interval,
        p_seeds=p_seeds,
        p_problems=p_problems,
        p_sign_flip=sign_flip_p_value(by_seed),
    )


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Mean with its 95 % percentile bootstrap interval."""
    return Interval(float(np.mean(values)), *bootstrap_interval(values, BOOTSTRAP_SEED))


def t_test(values: Sequence[float]) -> tuple[Interval, float]:
    """Mean with Student's 95 % t interval, and the two-sided p-value that it is 0; no bounds and 1 for one value."""
    from scipy.stats import ttest_1samp  # slow to import

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf), 1.0
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # equal up to rounding
        return Interval(mean, mean, mean), float(mean == 0)
    test = ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    return Interval(mean, float(low), float(high)), float(test.pvalue)


def within_range(interval: Interval) -> Interval:
    """The interval of a metric's mean without the values that no mean of numbers in [0, 1] has; endless ones stay."""
    if np.isinf(interval.high):
        return interval
    return Interval(interval.mean, max(0.0, interval.low), min(1.0, interval.high))


def sign_flip_p_value(values: Sequence[float]) -> float:
    """Two-sided p-value of the test that each value is as likely as its negative (Fisher 1935).

    Exact up to 16 values; above, from :data:`FLIPS` drawn flips, the observed one counted.
    """
    from scipy.stats import permutation_test

    if len(values) < 2:
        return 1.0
    scale = float(np.abs(values).max()) or 1.0

    def total(flipped: np.ndarray, axis: int) -> np.ndarray:
        return np.round(flipped.sum(axis=axis) / scale, 12)  # equal sums stay equal

    test = permutation_test(
        (np.asarray(values),), total, permutation_type="samples", vectorized=True, n_resamples=FLIPS, rng=BOOTSTRAP_SEED
    )
    return float(test.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for testing several differences at once (Holm 1979); same keys, same order."""
    if len(p_values) < 2:
        return dict(p_values)
    from statsmodels.stats.multitest import multipletests  # slow to import

    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, adjusted.tolist(), strict=True))
