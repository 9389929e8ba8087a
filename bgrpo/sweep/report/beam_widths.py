"""Accuracy against beam width, and the width that a target accuracy needs before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bgrpo.evaluation.intervals import Interval
from bgrpo.evaluation.metrics import RANK_SCALE, RANK_WIDTH, Evaluation

RESAMPLES = 1_000


class WidthSaving(NamedTuple):
    """The width that reaches after training what the starting policy reaches at ``width``."""

    width: int  # of the starting policy's beam search
    target: float  # its accuracy there
    needed: Interval  # width after training, 95 % bootstrap over seeds and problems; infinite: no measured width does

    @property
    def saving(self) -> Interval:
        """Share of the decoded tokens of a beam search that is saved, taking them as proportional to the width."""
        mean, low, high = (1 - width / self.width for width in self.needed)
        return Interval(mean, high, low)


def solved_by_width(evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Beam width -> solved or not (1.0, 0.0) for each problem; width 1 is greedy decoding."""
    solved = {1: evaluation.values["greedy"]} if "greedy" in evaluation.values else {}
    for name, values in evaluation.values.items():
        if name.startswith("beam@"):
            solved[int(name.removeprefix("beam@"))] = values
    return {width: np.asarray(solved[width], dtype=np.float64) for width in sorted(solved)}


def width_needed(widths: Sequence[int], accuracies: Sequence[float], target: float) -> float:
    """Smallest width that reaches ``target``, interpolated between measured widths on a logarithmic scale.

    Accuracy is taken as not falling with the width. 1 when the smallest measured width reaches it and is 1; infinite
    when no measured width does.
    """
    highest = np.maximum.accumulate(np.asarray(accuracies, dtype=np.float64))
    reached = np.flatnonzero(highest >= target - 1e-12)
    if not len(reached):
        return math.inf
    i = int(reached[0])
    if i == 0:
        return float(widths[0])
    low, high = math.log(widths[i - 1]), math.log(widths[i])
    share = (target - highest[i - 1]) / (highest[i] - highest[i - 1])
    return math.exp(low + min(1.0, share) * (high - low))


def width_savings(before: Evaluation, after: Sequence[Evaluation], seed: int = 0) -> list[WidthSaving]:
    """For each width above 1 that both sides measured: the width that training brings it down, or up, to.

    Args:
        before: the starting policy.
        after: trained policies on the same problems, one per seed.
        seed: of the bootstrap.
    """
    solved = [solved_by_width(evaluation) for evaluation in (before, *after)]
    widths = [width for width in solved[0] if all(width in other for other in solved)]
    if len(widths) < 2:
        return []
    before_WN = np.stack([solved[0][width] for width in widths])
    after_SWN = np.stack([[other[width] for width in widths] for other in solved[1:]])
    drawn_RW = _bootstrap_needed(widths, before_WN, after_SWN, seed)
    after_W = after_SWN.mean(axis=(0, 2))
    savings = []
    for w, width in enumerate(widths):
        if width > 1:
            target = float(before_WN[w].mean())
            low, high = np.percentile(drawn_RW[:, w], [2.5, 97.5], method="inverted_cdf")
            needed = Interval(width_needed(widths, after_W.tolist(), target), float(low), float(high))
            savings.append(WidthSaving(width, target, needed))
    return savings


def first_correct_ranks(evaluation: Evaluation) -> dict[int, int]:
    """1-based rank of the first correct completion of the width-10 search -> problems; 0 stands for "none correct".

    The inverse of :func:`bgrpo.evaluation.metrics.rank_score`, problem by problem. Empty when it was not measured.
    """
    scores_N = np.asarray(evaluation.values.get("beam_rank_score", []), dtype=np.float64)
    counts = dict.fromkeys(range(RANK_WIDTH + 1), 0)
    for score in scores_N:
        counts[0 if score == 0 else round(1 - RANK_SCALE * math.log(score))] += 1
    return counts if len(scores_N) else {}


def _bootstrap_needed(widths: list[int], before_WN: np.ndarray, after_SWN: np.ndarray, seed: int) -> np.ndarray:
    """Needed widths [R, W] with seeds and problems drawn with replacement."""
    generator = np.random.default_rng(seed)
    seeds, _, problems = after_SWN.shape
    needed_RW = np.empty((RESAMPLES, len(widths)))
    for r in range(RESAMPLES):
        share_N = np.bincount(generator.integers(problems, size=problems), minlength=problems) / problems
        share_S = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds) / seeds
        before_W = before_WN @ share_N
        after_W = (share_S @ (after_SWN @ share_N)).tolist()
        needed_RW[r] = [width_needed(widths, after_W, target) for target in before_W]
    return needed_RW
