"""What each advantage makes of the gradient, as a table and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from bgrpo.bench.gradients.toy_estimates import ESTIMATORS, Estimator, Quality, beams, estimates, long_tail, quality
from bgrpo.bench.output import DASH, DPI, make_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (2, 3, 4, 6, 8, 12, 16)
PUSHED = 10  # beams of the group whose push is drawn

Curves = dict[str, dict[int, Quality]]


def measure_gradients(groups: int) -> Curves:
    """Every estimator with groups of every size; ``groups`` of each."""
    toy = long_tail()
    return {each.name: {size: quality(toy, each, size, groups) for size in SIZES} for each in ESTIMATORS}


def gradient_tables(curves: Curves) -> list[Table]:
    """Bias and spread against K, in percent of the gradient's size."""
    headings = ["", *(f"K = {size}" for size in SIZES)]
    biases = [[name, *(f"{of.bias:.0%}" for of in curve.values())] for name, curve in curves.items()]
    spreads = [
        [name, *(f"{of.spread:.0%}" if of.spread else DASH for of in curve.values())] for name, curve in curves.items()
    ]
    return [make_table("bias", headings, biases), make_table("spread of one group's estimate", headings, spreads)]


def draw_gradients(curves: Curves) -> Figure:
    """Bias and spread against K, and what a group of beams does to each completion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), dpi=DPI, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for place, (name, curve) in enumerate(curves.items()):
        style = {"color": f"C{place}", "marker": "o", "markersize": 3.5}
        left.plot(list(curve), [100 * of.bias for of in curve.values()], label=name, **style)
        if any(of.spread for of in curve.values()):
            middle.plot(list(curve), [100 * of.spread for of in curve.values()], **style)
    left.set(title="bias", xlabel="completions of a group K", ylabel="% of the gradient's size", ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8)
    middle.set(title="spread of one estimate (beams: none)", xlabel="completions of a group K", ylim=(0, None))
    toy = long_tail()
    right.plot(_push(toy.gradient_N), "ks-", markersize=6, label="the gradient")
    for kind, color in (("mean", "C2"), ("probability_weighted", "C3")):
        found_N = estimates(toy, Estimator("", beams, kind, True), PUSHED, 1, np.random.default_rng(0))[0]
        right.plot(_push(found_N), "o-", color=color, markersize=3.5, label=f"{PUSHED} beams, {kind}")
    right.axhline(0, color="grey", linewidth=0.6)
    right.set(title="push on each logit, the strongest 1", xlabel="completion, the likeliest first")
    right.set_xlim(-0.5, 15.5)
    right.legend(fontsize=7)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    return figure


def _push(found_N: np.ndarray) -> np.ndarray:
    return found_N / np.abs(found_N).max()
