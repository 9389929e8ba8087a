"""The pictures of a sweep's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bgrpo.config import WIN_RATE
from bgrpo.display.png import write_png
from bgrpo.display.run_report import FAINT, INK, is_fraction, metric_label, tidy
from bgrpo.sweep.report.beam_widths import solved_by_width
from bgrpo.sweep.report.sweep_summary import SweepSummary
from bgrpo.sweep.report.sweep_verdict import AMOUNT_LABELS
from bgrpo.tasks.base import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6bb1", "#b8860b", "#56b4e9", "#444444")  # colour-blind safe
DASHES = ("-", "--", ":")
BEFORE: dict[str, Any] = {"color": "#8a94a0", "linestyle": "--"}
PANEL = (5.4, 3.3)  # inches
DPI = 130
SMOOTHED_POINTS = 20  # a training curve is a mean over steps / 20 steps
CURVE_METRICS = ("beam_rank_score", "greedy", "beam@", "pass@", WIN_RATE, "greedy_", "sample_reward", "best_", "mean_")
"""What is drawn, in this order: these metrics, and those that begin so (of ``greedy_`` the reward and each part)."""

_DRAWN = tuple(name for name in CURVE_METRICS if name != "greedy")
LEARNING = {
    "kl": "KL to the starting policy (nats per token)",
    "grad_norm": "gradient norm before clipping",
    "reward_mean": "mean reward",
    "entropy": "entropy (nats per token)",
}
OUTCOME_COLORS = {
    Outcome.CORRECT: "#4c9f70",
    Outcome.WRONG: "#c9ced6",
    Outcome.TRIVIAL: "#e3b34c",
    Outcome.UNPARSEABLE: "#b5651d",
    Outcome.TRUNCATED: "#7b8fa8",
    Outcome.TIMEOUT: "#8c6bb1",
    Outcome.ERROR: "#b03a2e",
    Outcome.SCORED: "#7fb3d5",
    Outcome.UNSCORED: "#e8e2d0",
}


def draw_pictures(summary: SweepSummary, folder: Path) -> dict[str, str]:
    """Write every picture there is material for into ``folder``, each complete or not at all.

    Returns:
        Name of each picture, ``<name>.png``, and its caption, which also tells those who cannot see it what it shows.
    """
    import pandas

    rows = [
        {"arm": arm.name, "trial": record.trial.id} | step
        for arm in summary.arms
        for record in arm.shown
        for step in record.steps
    ]
    steps = pandas.DataFrame(rows)
    drawings: list[tuple[str, str, Callable[[], Figure | None]]] = [
        ("results", "Test metrics: one dot per seed, bars: mean and 95 % t interval.", lambda: _draw_results(summary)),
        *(
            (
                f"validation_{amount}",
                f"Validation metrics against {AMOUNT_LABELS[amount]}.",
                lambda amount=amount: _draw_validation(summary, steps, amount),
            )
            for amount in ("steps", "tokens")
        ),
        ("widths", "Accuracy on the test problems against beam width.", lambda: _draw_widths(summary)),
        ("ranks", "Rank of the first correct completion among 10 beams.", lambda: _draw_ranks(summary)),
        (
            "learning",
            "KL, gradient norm, reward and entropy during training.",
            lambda: _draw_curves(summary, steps, {key: LEARNING[key] for key in LEARNING if key in steps}, "steps"),
        ),
        ("outcomes", "What became of the completions during training.", lambda: _draw_outcomes(steps)),
    ]
    captions = {}
    for name, caption, draw in drawings:
        figure = draw()
        if figure is not None:
            write_png(figure, folder / f"{name}.png")
            captions[name] = caption
    return captions


def _draw_results(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.metrics]
    if not arms:
        return None
    largest: dict[str, str] = {}  # of each family of metrics the one with the largest k
    for name in drawn_metrics(summary.metrics):
        largest[name.partition("@")[0]] = name
    figure, grid = _panels(len(largest), max(1.6, 0.42 * len(arms) + 1.0))
    styles = _arm_styles(summary)
    for axes, metric in zip(grid, largest.values(), strict=True):
        axes.axvline(arms[0].metrics[metric].before, linewidth=1.2, **BEFORE)
        for y, arm in enumerate(arms):
            row, color = arm.metrics[metric], styles[arm.name]["color"]
            axes.scatter(list(row.by_seed.values()), [y] * len(row.by_seed), s=16, color=color, alpha=0.45, zorder=3)
            if len(row.by_seed) > 1:
                axes.hlines(y, row.after_t.low, row.after_t.high, color=color, linewidth=2)
            axes.plot(row.after.mean, y, marker="D", markersize=6, color=color, zorder=4)
        axes.set_yticks(range(len(arms)), [_plain(arm.name) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        _finish(axes, metric_label(metric), percent="x" if is_fraction(metric) else "", grid="x")
    _add_legend(figure, {"before training": BEFORE})
    return figure


def _draw_validation(summary: SweepSummary, steps: DataFrame, amount: str) -> Figure | None:
    names = [name.removeprefix("validation/") for name in steps if name.startswith("validation/")]
    metrics = drawn_metrics(names)
    return _draw_curves(summary, steps, {f"validation/{name}": metric_label(name) for name in metrics}, amount)


def _draw_curves(summary: SweepSummary, steps: DataFrame, titles: Mapping[str, str], amount: str) -> Figure | None:
    """A panel per metric: a thin line per trial, a thick one through the mean at the steps that all of an arm have."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if not titles:
        return None
    figure, grid = _panels(len(titles))
    styles = {arm: style for arm, style in _arm_styles(summary).items() if arm in set(steps["arm"])}
    for axes, (key, title) in zip(grid, titles.items(), strict=True):
        for arm, found in steps.dropna(subset=[key]).groupby("arm", sort=False):
            lines = [_smoothed(line, key) if key in LEARNING else line for _, line in found.groupby("trial")]
            for line in lines:
                axes.plot(line[amount], line[key], color=styles[arm]["color"], alpha=0.3, linewidth=0.9)
            shared = sorted(set.intersection(*(set(line["step"]) for line in lines)))
            both_P2 = np.mean([line.set_index("step").loc[shared, [amount, key]] for line in lines], axis=0)
            marker = "o" if len(shared) <= 12 else ""
            axes.plot(both_P2[:, 0], both_P2[:, 1], linewidth=2, marker=marker, markersize=4, **styles[arm])
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        percent = key.startswith("validation/") and is_fraction(key.removeprefix("validation/"))
        _finish(axes, title, AMOUNT_LABELS[amount], "y" if percent else "")
    _add_legend(figure, styles)
    return figure


def _smoothed(line: DataFrame, key: str) -> DataFrame:
    """The same with running means of ``key``."""
    width = max(1, len(line) // SMOOTHED_POINTS)
    return line.assign(**{key: line[key].rolling(width, min_periods=1).mean()})


def _draw_widths(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.savings]
    if not arms:
        return None
    figure, (axes,) = _panels(1, 4.2, 7.0)
    styles = _arm_styles(summary)
    evaluated = {arm.name: list(summary.sweep.evaluated(arm.name).values()) for arm in arms}
    before = solved_by_width(evaluated[arms[0].name][0].before)
    axes.plot(list(before), [values.mean() for values in before.values()], marker="o", linewidth=1.5, **BEFORE)
    widths = set(before)
    for arm, comparisons in evaluated.items():
        curves = [solved_by_width(comparison.after) for comparison in comparisons]
        shared = [width for width in curves[0] if all(width in curve for curve in curves)]
        widths |= set(shared)
        values_SW = np.array([[curve[width].mean() for width in shared] for curve in curves])
        axes.fill_between(shared, values_SW.min(0), values_SW.max(0), color=styles[arm]["color"], alpha=0.12)
        axes.plot(shared, values_SW.mean(0), marker="o", linewidth=2, **styles[arm])
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(widths), [str(width) for width in sorted(widths)])
    axes.set_xticks([], minor=True)
    _finish(axes, "solved test problems; band: lowest to highest seed", "beam width (1: greedy)", "y")
    _add_legend(figure, {"before training": BEFORE} | {arm: styles[arm] for arm in evaluated})
    return figure


def _draw_ranks(summary: SweepSummary) -> Figure | None:
    arms = [arm for arm in summary.arms if arm.ranks]
    if not arms:
        return None
    figure, grid = _panels(len(arms), 2.7)
    styles = _arm_styles(summary)
    highest = max(max(*arm.ranks.values(), *arm.ranks_before.values()) for arm in arms)
    for axes, arm in zip(grid, arms, strict=True):
        ranks = [*(rank for rank in arm.ranks if rank), 0]
        places = np.arange(len(ranks))
        axes.bar(places - 0.2, [arm.ranks_before.get(rank, 0.0) for rank in ranks], 0.4, color="#c3cad3")
        axes.bar(places + 0.2, [arm.ranks[rank] for rank in ranks], 0.4, color=styles[arm.name]["color"])
        axes.set_xticks(places, [str(rank) if rank else "none" for rank in ranks])
        axes.set_ylim(0, highest * 1.08)
        _finish(axes, arm.name, "rank of the first correct beam (grey: before training)", "y")
    return figure


def _draw_outcomes(steps: DataFrame) -> Figure | None:
    """Shares of the completions of all of an arm's trials at each step."""
    outcomes = [outcome for outcome in Outcome if f"outcome/{outcome}" in steps and steps[f"outcome/{outcome}"].any()]
    if not outcomes:
        return None
    counts = steps.groupby(["arm", "step"], sort=False)[[f"outcome/{outcome}" for outcome in outcomes]].sum()
    arms = list(dict.fromkeys(steps["arm"]))
    figure, grid = _panels(len(arms), 2.7)
    for axes, arm in zip(grid, arms, strict=True):
        of_arm = counts.loc[arm].sort_index()
        shares = of_arm.div(of_arm.sum(axis=1).clip(lower=1), axis=0)
        axes.stackplot(shares.index, shares.T.to_numpy(), colors=[OUTCOME_COLORS[outcome] for outcome in outcomes])
        axes.set_xlim(shares.index[0], max(shares.index[-1], shares.index[0] + 1))
        axes.set_ylim(0, 1)
        _finish(axes, arm, "training steps", "y")
    _add_legend(figure, {str(o): {"color": OUTCOME_COLORS[o], "linewidth": 6} for o in outcomes})
    return figure


def _panels(count: int, height: float = PANEL[1], width: float = PANEL[0]) -> tuple[Figure, list[Axes]]:
    """A figure of at most two columns; panels beyond ``count`` are hidden."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, count)
    rows = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width * columns, height * rows + 0.45), dpi=DPI, layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def _arm_styles(summary: SweepSummary) -> dict[str, dict[str, Any]]:
    """Arm -> colour and dashes of its lines, the same in every picture."""
    return {
        arm.name: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // len(PALETTE) % len(DASHES)]}
        for i, arm in enumerate(summary.arms)
    }


def _add_legend(figure: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One legend above all panels: label -> style of its line."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=_plain(name), **{"linewidth": 2, **style}) for name, style in entries.items()]
    columns = min(len(handles), 4)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _finish(
    axes: Axes, title: str, x_label: str = "", percent: Literal["", "x", "y"] = "", grid: Literal["x", "y"] = "y"
) -> None:
    """Title, label, percentages along one axis, and quiet lines."""
    from matplotlib.ticker import PercentFormatter

    axes.set_title(_plain(title), fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x_label, fontsize=9, color=FAINT)
    if percent:
        (axes.xaxis if percent == "x" else axes.yaxis).set_major_formatter(PercentFormatter(1.0))
    tidy(axes, grid)


def drawn_metrics(names: Iterable[str]) -> list[str]:
    """Those of which there are pictures, by family as in :data:`CURVE_METRICS`, then by k."""

    def place(name: str) -> tuple[int, str, int]:
        stem, _, k = name.partition("@")
        family = CURVE_METRICS.index(stem) if stem in CURVE_METRICS else -1
        if family < 0:
            family = next(i for i, prefix in enumerate(CURVE_METRICS) if name.startswith(prefix) and prefix != "greedy")
        return family, "" if stem == "greedy_reward" else stem, int(k) if k.isdecimal() else 0

    return sorted((name for name in names if name == "greedy" or name.startswith(_DRAWN)), key=place)


def _plain(text: str) -> str:
    """``text`` such that it is drawn as it is, not read as a formula."""
    return text.replace("$", r"\$")
