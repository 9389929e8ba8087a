"""Training and validation curves of a sweep, all arms in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bgrpo.display.run_report import FAINT, INK, metric_label, tidy
from bgrpo.sweep.report.panels import CURVE_METRICS, add_legend, arm_styles, format_metric, metric_order, panels
from bgrpo.sweep.report.records import TrialRecord
from bgrpo.sweep.report.summary import SweepSummary, shown_trials
from bgrpo.sweep.report.verdict import AMOUNT_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_POINTS = 20  # a training curve is a mean over steps / 20 steps
LEARNING = {
    "kl": "KL to the starting policy (nats per token)",
    "grad_norm": "gradient norm before clipping",
    "reward_mean": "mean reward",
    "entropy": "entropy (nats per token)",
}


def draw_validation(summary: SweepSummary, amount: str) -> Figure | None:
    """Validation metrics against an amount used; None when there are none."""
    trials = {arm.name: shown_trials(arm) for arm in summary.arms}
    found = {name for several in trials.values() for trial in several for step in trial.steps for name in step}
    names = [name.removeprefix("validation/") for name in found if name.startswith("validation/")]
    metrics = sorted((name for name in names if name.startswith(CURVE_METRICS)), key=metric_order)
    if not metrics:
        return None
    figure, grid = panels(len(metrics))
    for axes, metric in zip(grid, metrics, strict=True):
        _draw_curves(axes, summary, trials, f"validation/{metric}", amount, smooth=False)
        axes.set_title(metric_label(metric), fontsize=10, color=INK, loc="left")
        format_metric(axes, metric, "y")
    add_legend(figure, {name: style for name, style in arm_styles(summary).items() if trials[name]})
    return figure


def draw_learning(summary: SweepSummary) -> Figure | None:
    """KL, gradient norm, reward and entropy against training steps; None before the first step."""
    trials = {arm.name: shown_trials(arm) for arm in summary.arms}
    found = {name for several in trials.values() for trial in several for step in trial.steps for name in step}
    keys = [key for key in LEARNING if key in found]
    if not keys:
        return None
    figure, grid = panels(len(keys))
    for axes, key in zip(grid, keys, strict=True):
        _draw_curves(axes, summary, trials, key, "steps", smooth=True)
        axes.set_title(LEARNING[key], fontsize=10, color=INK, loc="left")
    add_legend(figure, {name: style for name, style in arm_styles(summary).items() if trials[name]})
    return figure


def _draw_curves(
    axes: Axes,
    summary: SweepSummary,
    trials: Mapping[str, Sequence[TrialRecord]],
    key: str,
    amount: str,
    smooth: bool,
) -> None:
    """A thin line per trial, and a thick one through the mean at the steps that all trials of an arm have."""
    styles = arm_styles(summary)
    for arm, several in trials.items():
        lines = [_curve(trial, key, amount, smooth) for trial in several]
        lines = [line for line in lines if line]
        for line in lines:
            x, y = _columns(line)
            axes.plot(x, y, color=styles[arm]["color"], alpha=0.3, linewidth=0.9)
        shared = sorted(set.intersection(*(set(line) for line in lines))) if lines else []
        if shared:
            mean = {step: tuple(np.mean([line[step] for line in lines], axis=0)) for step in shared}
            marker = "o" if len(shared) <= 12 else ""
            x, y = _columns(mean)
            axes.plot(x, y, linewidth=2, marker=marker, markersize=4, **styles[arm])
    axes.set_xlabel(AMOUNT_LABELS[amount], fontsize=9, color=FAINT)
    axes.set_xlim(left=0)
    _short_numbers(axes)
    tidy(axes, "y")


def _curve(trial: TrialRecord, key: str, amount: str, smooth: bool) -> dict[int, tuple[float, float]]:
    """Step -> (amount used, value), values as running means when ``smooth``."""
    steps = [step for step in trial.steps if step.get(key) is not None]
    values = np.asarray([step[key] for step in steps], dtype=np.float64)
    width = max(1, len(values) // SMOOTHED_POINTS) if smooth else 1
    means = [float(values[max(0, i + 1 - width) : i + 1].mean()) for i in range(len(values))]
    return {int(step["step"]): (step[amount], mean) for step, mean in zip(steps, means, strict=True)}


def _columns(curve: Mapping[int, tuple[float, float]]) -> tuple[list[float], list[float]]:
    points = list(curve.values())
    return [x for x, _ in points], [y for _, y in points]


def _short_numbers(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
