"""The pictures of a sweep's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bgrpo.display.png import write_png
from bgrpo.display.run_report import FAINT, INK, metric_label, tidy
from bgrpo.sweep.report.curves import draw_learning, draw_validation
from bgrpo.sweep.report.panels import (
    BEFORE_COLOR,
    CURVE_METRICS,
    PANEL,
    add_legend,
    arm_styles,
    format_metric,
    format_percent,
    metric_order,
    panels,
    plain,
)
from bgrpo.sweep.report.summary import SweepSummary, pooled_outcomes, shown_trials
from bgrpo.sweep.report.widths import solved_by_width
from bgrpo.tasks.base import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTCOME_COLORS = {
    Outcome.CORRECT: "#4c9f70",
    Outcome.WRONG: "#c9ced6",
    Outcome.TRIVIAL: "#e3b34c",
    Outcome.UNPARSEABLE: "#b5651d",
    Outcome.TRUNCATED: "#7b8fa8",
    Outcome.TIMEOUT: "#8c6bb1",
    Outcome.ERROR: "#b03a2e",
}


class Picture(NamedTuple):
    """A PNG of the report.

    Attributes:
        name: file name without ending.
        caption: what it shows, also for those who cannot see it.
    """

    name: str
    caption: str


def draw_pictures(summary: SweepSummary, folder: Path) -> list[Picture]:
    """Write every picture there is material for into ``folder``, each complete or not at all."""
    drawings = (
        (Picture("results", "Test metrics: one dot per seed, bars: mean and 95 % t interval."), _draw_results),
        (Picture("validation_steps", "Validation metrics against training steps."), _draw_validation_by_steps),
        (Picture("validation_tokens", "Validation metrics against decoded tokens."), _draw_validation_by_tokens),
        (Picture("widths", "Accuracy on the test problems against beam width."), _draw_widths),
        (Picture("ranks", "Rank of the first correct completion among 10 beams."), _draw_ranks),
        (Picture("learning", "KL, gradient norm, reward and entropy during training."), draw_learning),
        (Picture("outcomes", "What became of the completions during training."), _draw_outcomes),
    )
    pictures = []
    for picture, draw in drawings:
        figure = draw(summary)
        if figure is not None:
            write_png(figure, folder / f"{picture.name}.png")
            pictures.append(picture)
    return pictures


def _draw_results(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.metrics]
    if not arms:
        return None
    height = max(1.6, 0.42 * len(arms) + 1.0)
    metrics = _headline_metrics(summary.metrics)
    figure, grid = panels(len(metrics), (PANEL[0], height))
    styles = arm_styles(summary)
    for axes, metric in zip(grid, metrics, strict=True):
        axes.axvline(arms[0].metrics[metric].before, color=BEFORE_COLOR, linestyle="--", linewidth=1.2)
        for y, arm in enumerate(arms):
            row, color = arm.metrics[metric], styles[arm.name]["color"]
            axes.scatter(list(row.by_seed.values()), [y] * len(row.by_seed), s=16, color=color, alpha=0.45, zorder=3)
            if len(row.by_seed) > 1:
                axes.hlines(y, row.after_t.low, row.after_t.high, color=color, linewidth=2)
            axes.plot(row.after.mean, y, marker="D", markersize=6, color=color, zorder=4)
        axes.set_yticks(range(len(arms)), [plain(arm.name) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_title(metric_label(metric), fontsize=10, color=INK, loc="left")
        format_metric(axes, metric, "x")
        tidy(axes, "x")
    add_legend(figure, {"before training": {"color": BEFORE_COLOR, "linestyle": "--"}})
    return figure


def _draw_validation_by_steps(summary: SweepSummary) -> Figure | None:
    return draw_validation(summary, "steps")


def _draw_validation_by_tokens(summary: SweepSummary) -> Figure | None:
    return draw_validation(summary, "tokens")


def _draw_widths(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.savings]
    if not arms:
        return None
    figure, (axes,) = panels(1, (7.0, 4.2))
    styles = arm_styles(summary)
    evaluated = summary.sweep.evaluated(arms[0].name)
    before = solved_by_width(next(iter(evaluated.values())).before)
    start: dict[str, Any] = {"color": BEFORE_COLOR, "linestyle": "--"}
    axes.plot(list(before), [values.mean() for values in before.values()], marker="o", linewidth=1.5, **start)
    widths = set(before)
    for arm in arms:
        curves = [solved_by_width(c.after) for c in summary.sweep.evaluated(arm.name).values()]
        shared = [width for width in curves[0] if all(width in curve for curve in curves)]
        widths |= set(shared)
        values_SW = np.array([[curve[width].mean() for width in shared] for curve in curves])
        axes.fill_between(shared, values_SW.min(0), values_SW.max(0), color=styles[arm.name]["color"], alpha=0.12)
        axes.plot(shared, values_SW.mean(0), marker="o", linewidth=2, **styles[arm.name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(widths), [str(width) for width in sorted(widths)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("beam width (1: greedy)", fontsize=9, color=FAINT)
    axes.set_title("solved test problems; band: lowest to highest seed", fontsize=10, color=INK, loc="left")
    format_metric(axes, "beam@", "y")
    tidy(axes, "y")
    add_legend(figure, {"before training": start} | {arm.name: styles[arm.name] for arm in arms})
    return figure


def _draw_ranks(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.ranks]
    if not arms:
        return None
    figure, grid = panels(len(arms), (PANEL[0], 2.7))
    styles = arm_styles(summary)
    highest = max(max(*arm.ranks.values(), *arm.ranks_before.values()) for arm in arms)
    for axes, arm in zip(grid, arms, strict=True):
        ranks = [*(rank for rank in arm.ranks if rank), 0]
        places = np.arange(len(ranks))
        axes.bar(places - 0.2, [arm.ranks_before.get(rank, 0.0) for rank in ranks], 0.4, color="#c3cad3")
        axes.bar(places + 0.2, [arm.ranks[rank] for rank in ranks], 0.4, color=styles[arm.name]["color"])
        axes.set_xticks(places, [str(rank) if rank else "none" for rank in ranks])
        axes.set_ylim(0, highest * 1.08)
        axes.set_title(plain(arm.name), fontsize=10, color=INK, loc="left")
        axes.set_xlabel("rank of the first correct beam (grey: before training)", fontsize=9, color=FAINT)
        format_percent(axes, "y")
        tidy(axes, "y")
    return figure


def _draw_outcomes(summary: SweepSummary) -> Figure | None:
    shares = {arm.name: pooled_outcomes(shown_trials(arm)) for arm in summary.arms}
    shares = {arm: by_step for arm, by_step in shares.items() if by_step}
    if not shares:
        return None
    steps_found = [found for by_step in shares.values() for found in by_step.values()]
    present = {name for found in steps_found for name, share in found.items() if share}
    outcomes = [outcome for outcome in Outcome if outcome in present]
    figure, grid = panels(len(shares), (PANEL[0], 2.7))
    for axes, (arm, by_step) in zip(grid, shares.items(), strict=True):
        steps = list(by_step)
        stack = [[by_step[step].get(outcome, 0.0) for step in steps] for outcome in outcomes]
        axes.stackplot(steps, stack, colors=[OUTCOME_COLORS[outcome] for outcome in outcomes], step=None)
        axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
        axes.set_ylim(0, 1)
        axes.set_title(plain(arm), fontsize=10, color=INK, loc="left")
        axes.set_xlabel("training steps", fontsize=9, color=FAINT)
        format_percent(axes, "y")
        tidy(axes, "y")
    add_legend(figure, {str(o): {"color": OUTCOME_COLORS[o], "linewidth": 6} for o in outcomes})
    return figure


def _headline_metrics(names: Sequence[str]) -> list[str]:
    """Of each family the metric with the largest k."""
    families: dict[str, str] = {}
    for name in sorted((name for name in names if name.startswith(CURVE_METRICS)), key=metric_order):
        families[name.partition("@")[0]] = name
    return list(families.values())
