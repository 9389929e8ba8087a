"""What the pictures of a sweep's report have in common: panels, colours, axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bgrpo.display.run_report import RAW_METRICS
from bgrpo.sweep.report.summary import SweepSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6bb1", "#b8860b", "#56b4e9", "#444444")  # colour-blind safe
DASHES = ("-", "--", ":")
BEFORE_COLOR = "#8a94a0"
PANEL = (5.4, 3.3)  # inches
DPI = 130
CURVE_METRICS = ("beam_rank_score", "greedy", "beam@", "pass@")


def panels(count: int, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure of at most two columns; panels beyond ``count`` are hidden."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, count)
    rows = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.45), dpi=DPI, layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def arm_styles(summary: SweepSummary) -> dict[str, dict[str, Any]]:
    """Arm -> colour and dashes of its lines, the same in every picture."""
    return {
        arm.name: {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": DASHES[i // len(PALETTE) % len(DASHES)],
        }
        for i, arm in enumerate(summary.arms)
    }


def add_legend(figure: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One legend above all panels: label -> style of its line."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=plain(name), **({"linewidth": 2} | dict(style))) for name, style in entries.items()]
    columns = min(len(handles), 4)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def format_metric(axes: Axes, metric: str, axis: Literal["x", "y"]) -> None:
    """Percentages along an axis, unless the metric is shown as a number."""
    if metric not in RAW_METRICS:
        format_percent(axes, axis)


def format_percent(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Percentages along an axis."""
    from matplotlib.ticker import PercentFormatter

    (axes.xaxis if axis == "x" else axes.yaxis).set_major_formatter(PercentFormatter(1.0))


def metric_order(name: str) -> tuple[int, int]:
    """Sorts the metrics of :data:`CURVE_METRICS` by family, then by k."""
    family = next(i for i, prefix in enumerate(CURVE_METRICS) if name.startswith(prefix))
    digits = name.partition("@")[2]
    return family, int(digits) if digits.isdecimal() else 0


def plain(text: str) -> str:
    """``text`` such that it is drawn as it is, not read as a formula."""
    return text.replace("$", r"\$")
