"""What a run's result looks like: tables for the terminal, one picture for the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from bgrpo.config import ORACLE, WIN_RATE
from bgrpo.display.part_report import SHARES_TITLE, draw_shares, parts_with_shares
from bgrpo.display.png import write_png
from bgrpo.evaluation.comparison import ComparisonRow, EvaluationComparison
from bgrpo.evaluation.intervals import Interval
from bgrpo.evaluation.metrics import REPEATED, Evaluation
from bgrpo.runs.learning_signal import conclusions
from bgrpo.scoring.failed_checks import failures_of_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from bgrpo.config import RewardSection, TrainConfig

INK, FAINT, GRID = "#222222", "#777777", "#dddddd"
BEFORE, AFTER, CURVE, WARNING = "#a9b4c2", "#1f6fb2", "#1f6fb2", "#b03a2e"
SMOOTHING = 20  # a curve's dark line is the mean over steps / SMOOTHING steps
DPI = 150


class Panel(NamedTuple):
    """One training curve.

    Attributes:
        key: metric.
        title: what stands over it.
        is_fraction: drawn from 0 to 100 %.
    """

    key: str
    title: str
    is_fraction: bool


PANELS = (
    Panel("reward_mean", "mean reward", False),
    Panel("solved_groups", "groups with a correct completion", True),
    Panel("top1_accuracy", "rank-1 completion correct", True),
    Panel("kl", "KL to the starting policy (nats per token)", False),
    Panel("entropy", "entropy (nats per token)", False),
    Panel("informative_groups", "groups whose rewards differ", True),
)
SCORE = Panel("score_mean", "mean score (weighted sum of the parts)", False)
MAX_PANELS = 4
LINES, CHARACTERS_PER_INCH = 2, 11.5  # of each warning below the picture
EXACT = ("solved_groups", "top1_accuracy")  # say nothing about a function's graded rewards
FAMILIES = ("beam@", "pass@")
SHARES = ("greedy", "top1", ORACLE, WIN_RATE)

METRIC_LABELS = {"top1": "top-1 of 10", "beam_rank_score": "beam-rank score", WIN_RATE: "win rate"}
REWARDS = ("greedy_reward", "best_reward@", "mean_reward@", "sample_reward", "best_of@")


def is_fraction(metric: str) -> bool:
    """Whether a metric is a share of problems, shown as a percentage; others are numbers."""
    return metric in SHARES or metric.startswith(FAMILIES)


def is_bounded(metric: str) -> bool:
    """Whether a metric lies in [0, 1] whatever the reward."""
    return is_fraction(metric) or metric == "beam_rank_score"


def comparison_table(comparison: EvaluationComparison, title: str = "before and after") -> Table:
    """Before and after, each mean with its 95 % interval; a difference that excludes zero is coloured."""
    table = Table(
        title=title,
        caption=f"{len(comparison.before.categories)} problems, 95 % bootstrap intervals",
        box=None,  # fits 80 columns
        padding=(0, 1, 0, 0),
        header_style="bold underline",
    )
    table.add_column("metric", min_width=11)
    for name in ("before", "after", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _shown_rows(comparison):
        style = _difference_style(row)
        difference = _interval_text(row.metric, row.difference, sign=True)
        table.add_row(
            _label_of_some(row.metric, row.problems, len(comparison.before.categories)),
            _interval_text(row.metric, row.before),
            _interval_text(row.metric, row.after),
            Text(difference, style=style or ""),
        )
    return table


def _label_of_some(metric: str, known: int, problems: int) -> str:
    """A metric's label; it tells how many of the problems have it, where some have not."""
    return metric_label(metric) + (f"\nof {known:,} problems" if known < problems else "")


def evaluation_tables(evaluation: Evaluation, title: str) -> list[Table]:
    """Metrics with intervals, their breakdown by category, and the outcomes of each search."""
    metrics = Table(title=title, caption=f"{len(evaluation.categories)} problems, 95 % bootstrap intervals")
    metrics.add_column("metric")
    metrics.add_column("value", justify="right", no_wrap=True)
    for name, interval in evaluation.intervals().items():
        if name != REPEATED:
            label = _label_of_some(name, evaluation.known(name), len(evaluation.categories))
            metrics.add_row(label, _interval_text(name, interval))
    return [metrics, *_category_tables(evaluation), _outcome_table(evaluation)]


def metric_label(name: str) -> str:
    """A metric as people read it."""
    return METRIC_LABELS.get(name, name)


def plot_report(
    config: TrainConfig,
    metrics: Sequence[Mapping[str, Any]],
    comparison: EvaluationComparison | None,
    name: str,
    out: Path,
) -> None:
    """Write a PNG: training curves on the left, before/after bars with intervals on the right, warnings below.

    Args:
        config: of the run.
        metrics: one mapping per training step, with ``step``; metrics that never came are left out.
        comparison: None leaves the bars out.
        name: of the run.
        out: target file.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)  # inches
    figure = Figure(figsize=(9 if comparison is None else 14, 6.4), dpi=DPI, layout=layout)
    figure.suptitle(f"{name} · {config.algorithm}", fontsize=15, color=INK, fontweight="bold")
    told = [*failures_of_steps(metrics), *conclusions(config, metrics)]
    width = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    label = "\n".join(part for line in told for part in wrap(line, width, max_lines=LINES, placeholder=" …"))
    figure.supxlabel(label, fontsize=9, color=WARNING, parse_math=False)
    left, *right = figure.subfigures(1, 1 if comparison is None else 2, squeeze=False)[0]
    _draw_curves(left, metrics, config.reward)
    if comparison is not None:
        _draw_bars(right[0], comparison)
    write_png(figure, out)


def _draw_curves(figure: SubFigure, metrics: Sequence[Mapping[str, Any]], reward: RewardSection) -> None:
    known = {key for line in metrics for key, value in line.items() if value is not None}
    first = SCORE if reward.parts and SCORE.key in known else PANELS[0]  # rewards may be normalised to a mean of 0
    panels = [
        panel for panel in (first, *PANELS[1:]) if panel.key in known and not (reward.is_graded and panel.key in EXACT)
    ]
    parts = parts_with_shares(reward, metrics)
    panels = panels[: MAX_PANELS - bool(parts)]
    if not panels:
        figure.text(0.5, 0.5, "no training step yet", ha="center", va="center", color=FAINT)
        return
    count = len(panels) + bool(parts)
    columns = 1 if count == 1 else 2
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False).ravel()
    if parts:
        draw_shares(grid[len(panels)], metrics, parts, max(1, len(metrics) // SMOOTHING))
        _finish_panel(grid[len(panels)], SHARES_TITLE, [line["step"] for line in metrics])
    for axes, panel in zip(grid, panels, strict=False):
        lines = [line for line in metrics if line.get(panel.key) is not None]
        _draw_curve(axes, panel, [line["step"] for line in lines], [line[panel.key] for line in lines])
    for axes in grid[count:]:
        axes.set_visible(False)


def _draw_curve(axes: Axes, panel: Panel, steps: Sequence[int], values: Sequence[float]) -> None:
    import numpy as np
    from matplotlib.ticker import PercentFormatter

    width = max(1, len(values) // SMOOTHING)
    axes.plot(steps, values, color=CURVE, alpha=0.3 if width > 1 else 1.0, linewidth=1, marker="o" * (len(steps) == 1))
    if width > 1:
        sums = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
        starts = np.maximum(np.arange(1, len(values) + 1) - width, 0)
        ends = np.arange(1, len(values) + 1)
        axes.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=CURVE, linewidth=2)
    _finish_panel(axes, panel.title, steps)
    if panel.is_fraction:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif min(values) >= 0:
        axes.set_ylim(0, max(max(values) * 1.08, 1e-6))


def _finish_panel(axes: Axes, title: str, steps: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel("training step", fontsize=9, color=FAINT)
    axes.set_xlim(min(0, steps[0]), max(1, steps[-1]) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    tidy(axes, "y")


def _draw_bars(figure: SubFigure, comparison: EvaluationComparison) -> None:
    """Before and after: shares of solved problems, and below them rewards, which have a unit of their own."""
    from matplotlib.ticker import PercentFormatter

    rows = _shown_rows(comparison)
    solved = [row for row in rows if is_bounded(row.metric)]
    rewards = [row for row in rows if row.metric.startswith(REWARDS)]
    groups = [group for group in (solved, rewards) if group]
    every = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(group) for group in groups])[:, 0]
    for axes, group in zip(every, groups, strict=True):
        _draw_group(axes, group)
        if group is solved:
            axes.set_xlim(0, 1.12)
            axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.margins(x=0.12)
            axes.axvline(0, color=FAINT, linewidth=0.8)
    problems = len(comparison.before.categories)
    title = f"{problems} held-out problems, 95 % intervals"
    every[0].set_title(title, fontsize=10, color=INK, loc="left", pad=22)
    every[0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9, borderaxespad=0.1)


def _draw_group(axes: Axes, rows: Sequence[ComparisonRow]) -> None:
    """Two bars per metric, each with its interval and its number."""
    height = 0.38
    for offset, color, label in ((-height / 2, BEFORE, "before"), (height / 2, AFTER, "after")):
        intervals = [row.before if label == "before" else row.after for row in rows]
        means = [interval.mean for interval in intervals]
        errors = [
            [max(0.0, interval.mean - interval.low) for interval in intervals],
            [max(0.0, interval.high - interval.mean) for interval in intervals],
        ]
        places = [i + offset for i in range(len(rows))]
        axes.barh(places, means, height, color=color, label=label)
        axes.errorbar(means, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for place, row, interval in zip(places, rows, intervals, strict=True):
            axes.annotate(
                _number_text(row.metric, interval.mean),
                (max(interval.high, 0.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.set_yticks(range(len(rows)), [metric_label(row.metric) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    tidy(axes, "x")


def _shown_rows(comparison: EvaluationComparison) -> list[ComparisonRow]:
    return [row for row in comparison.rows() if row.metric != REPEATED]


def tidy(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Quiet axes with grid lines along one direction; names of bars stand out along the other."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9)
    if grid == "x":
        axes.tick_params(axis="y", colors=INK, length=0)


def _category_tables(evaluation: Evaluation) -> list[Table]:
    categories = evaluation.by_category()
    if len(categories) < 2:
        return []
    table = Table(title="by category")
    table.add_column("category")
    table.add_column("problems", justify="right")
    shown = _headline_metrics(list(evaluation.values))
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for category, row in categories.items():
        values = [_number_text(name, row[name]) for name in shown]
        table.add_row(category or "–", f"{row['problems']:.0f}", *values)
    return [table]


def _headline_metrics(names: Sequence[str]) -> list[str]:
    """Those that fit a terminal: of beam@k and pass@k only the largest k."""
    largest = {family: max((n for n in names if n.startswith(family)), key=_k, default="") for family in FAMILIES}
    shown = [name for name in names if not name.startswith(FAMILIES) or name in largest.values()]
    return [name for name in shown if name != REPEATED]


def _k(name: str) -> int:
    return int(name.partition("@")[2])


def _outcome_table(evaluation: Evaluation) -> Table:
    table = Table(title="outcomes (completions)")
    table.add_column("search")
    names = list(dict.fromkeys(name for counts in evaluation.outcomes.values() for name in counts))
    for name in names:
        table.add_column(name, justify="right")
    for search, counts in evaluation.outcomes.items():
        table.add_row(search, *(f"{counts.get(name, 0):,}" for name in names))
    return table


def _number_text(metric: str, value: float, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return format(value, f"{plus}z.3f") if not is_fraction(metric) else f"{100 * value:{plus}z.1f}%"


def _interval_text(metric: str, interval: Interval, sign: bool = False) -> str:
    scale, form = (100, "z.1f") if is_fraction(metric) else (1, "z.3f")
    form = f"+{form}" if sign else form
    bounds = f"[{scale * interval.low:{form}}, {scale * interval.high:{form}}]"
    return f"{_number_text(metric, interval.mean, sign)} {bounds}"


def _difference_style(row: ComparisonRow) -> str:
    if row.difference.low > 0:
        return "green"
    return "red" if row.difference.high < 0 else ""
