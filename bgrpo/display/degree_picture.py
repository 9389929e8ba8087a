"""How well problems are solved, cell by cell of the task's grid: heat maps, and bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bgrpo.display.histograms import draw_grid
from bgrpo.display.png import write_png
from bgrpo.display.run_report import AFTER, BEFORE, DPI, INK, metric_label, tidy
from bgrpo.evaluation.intervals import Interval

Cell = tuple[int, int]
Measured = Mapping[str, Mapping[Cell, Interval]]


def draw_cells(measured: Mapping[str, Measured], names: tuple[str, str], problems: int, title: str, out: Path) -> None:
    """Write a PNG: for each metric a row with a heat map of each policy, of their difference, and bars of every cell.

    Args:
        measured: metric -> what :func:`bgrpo.evaluation.many_files.by_cell` gave; shares of problems.
        names: of the grid's rows and columns.
        problems: measured in all.
        title: over everything.
        out: target file, complete or not at all.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    both = all("before" in each for each in measured.values())
    columns = 4 if both else 2
    figure = Figure(figsize=(3.6 * columns, 3.3 * len(measured)), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title} · {problems:,} problems, 95 % intervals", fontsize=13, color=INK)
    rows = figure.subplots(len(measured), columns, squeeze=False)
    for row, (metric, policies) in zip(rows, measured.items(), strict=True):
        places = list(row)
        for name, cells in policies.items():
            means = {cell: interval.mean for cell, interval in cells.items()}
            axes = places.pop(0)
            draw_grid(axes, means, {cell: f"{mean:.0%}" for cell, mean in means.items()}, names, 1.0)
            axes.set_title(f"{metric_label(metric)}{', ' + name if both else ''}", fontsize=10, loc="left", color=INK)
        if both:
            change = {cell: policies["after"][cell].mean - policies["before"][cell].mean for cell in policies["after"]}
            axes, most = places.pop(0), max(0.01, *map(abs, change.values()))
            texts = {cell: f"{100 * value:+.0f}" for cell, value in change.items()}
            draw_grid(axes, change, texts, names, most, -most, "RdBu")
            axes.set_title("difference in points", fontsize=10, loc="left", color=INK)
        axes = places.pop(0)
        width = 0.8 / len(policies)
        for i, (name, cells) in enumerate(policies.items()):
            xs = [position + (i - (len(policies) - 1) / 2) * width for position in range(len(cells))]
            means_all = [interval.mean for interval in cells.values()]
            errors = [
                [max(0.0, interval.mean - interval.low) for interval in cells.values()],
                [max(0.0, interval.high - interval.mean) for interval in cells.values()],
            ]
            axes.bar(xs, means_all, width, color=BEFORE if name == "before" else AFTER, label=name)
            axes.errorbar(xs, means_all, yerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axes.set_xticks(range(len(cells)), [f"{outer}∘{inner}" for outer, inner in cells], rotation=45)
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(f"{metric_label(metric)} by {names[0]} ∘ {names[1]}", fontsize=10, loc="left", color=INK)
        if both:
            axes.legend(fontsize=8, frameon=False)
        tidy(axes, "y")
    write_png(figure, out)
