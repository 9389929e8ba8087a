"""Means with 95 % bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

RESAMPLES = 10_000


BOOTSTRAP_ENTRIES = 4_000_000  # drawn at a time: bounds memory to a few times 32 MB


Name = TypeVar("Name", str, tuple[str, str])


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979), problems drawn with replacement."""
    low, high = _bootstrap_bounds(np.asarray(values, dtype=np.float64)[:, None], seed, resamples)[:, 0]
    return float(low), float(high)


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int) -> Interval:
    """Mean of after - before over the same problems, with its bootstrap interval."""
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return Interval(float(difference.mean()), *bootstrap_interval(difference.tolist(), seed))


def intervals(values: dict[Name, list[float]], seed: int) -> dict[Name, Interval]:
    """Mean of each column of values with its bootstrap interval; all columns share the resampled problems.

    Problems without a value in a column (NaN) count neither in its mean nor in its interval.
    """
    if not values:  # nothing could be scored
        return {}
    values_NM = np.array(list(values.values()), dtype=np.float64).T
    bounds_2M = _bootstrap_bounds(values_NM, seed, RESAMPLES)
    means_M = np.nanmean(values_NM, axis=0) if np.isnan(values_NM).any() else values_NM.mean(axis=0)
    return {
        name: Interval(float(means_M[m]), float(bounds_2M[0, m]), float(bounds_2M[1, m]))
        for m, name in enumerate(values)
    }


def _bootstrap_bounds(values_NM: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Bounds [2, M] for M metrics on N problems; all metrics share the resampled problems."""
    problems = len(values_NM)
    there_NM = ~np.isnan(values_NM)
    filled_NM = np.where(there_NM, values_NM, 0.0)
    generator = np.random.default_rng(seed)
    chunk = max(1, BOOTSTRAP_ENTRIES // problems)
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn_RN = generator.integers(problems, size=(rows, problems), dtype=np.int64)
        drawn_RN += np.arange(rows)[:, None] * problems
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=rows * problems).reshape(rows, problems)
        weights_RN = counts_RN.astype(np.float64)
        with np.errstate(invalid="ignore"):  # a resample without any value says nothing
            means.append(weights_RN @ filled_NM / (problems if there_NM.all() else weights_RN @ there_NM))
    return np.nanpercentile(np.concatenate(means), [2.5, 97.5], axis=0)
