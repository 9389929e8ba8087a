"""Pictures over the two quantities of a task's grid: how many problems there are, and how well they are solved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgrpo.display.png import write_png
from bgrpo.display.run_report import DPI, FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = tuple[int, int]


def draw_histogram(found: Mapping[str, Any], out: Path) -> None:
    """Draw what :func:`bgrpo.tasks.histogram.count_problems` gave: a heat map, or bars of its categories."""
    from matplotlib.figure import Figure

    grid = found.get("grid")
    cells = {(row, column): count for row, column, count in grid["cells"]} if grid else {}
    figure = Figure(figsize=(6, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if grid and cells:
        texts = {cell: f"{count:,}" for cell, count in cells.items()}
        draw_grid(axes, cells, texts, (grid["rows"], grid["columns"]), max(cells.values()))
    else:
        counts = dict(sorted(found["by"]["category"].items(), key=lambda item: -item[1])[:30])
        axes.barh([label or "–" for label in counts], list(counts.values()))
        axes.invert_yaxis()
        axes.set_xlabel("problems", color=FAINT)
    axes.set_title(f"{found['problems']:,} problems", loc="left", color=INK)
    write_png(figure, out)


def draw_grid(
    axes: Axes,
    values: Mapping[Cell, float],
    texts: Mapping[Cell, str],
    names: tuple[str, str],
    high: float,
    low: float = 0.0,
    colors: str = "Blues",
) -> None:
    """A heat map with a text in every cell.

    Args:
        axes: to draw on.
        values: (row, column) -> colour, from ``low`` to ``high``.
        texts: of the same cells.
        names: what rows and columns are.
        high: value of the darkest colour.
        low: value of the lightest colour.
        colors: colour map.
    """
    import numpy as np

    rows, columns = sorted({row for row, _ in values}), sorted({column for _, column in values})
    table = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in values.items():
        table[rows.index(row), columns.index(column)] = value
    axes.imshow(table, cmap=colors, vmin=low, vmax=high, aspect="auto")
    middle = (low + high) / 2
    for (row, column), text in texts.items():
        dark = abs(values[row, column] - middle) > (high - low) / 4 if low < 0 else values[row, column] > middle
        place = columns.index(column), rows.index(row)
        axes.text(*place, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    axes.set_xticks(range(len(columns)), [str(column) for column in columns])
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.set_ylabel(f"{names[0]} degree" if names[0] in ("outer", "inner") else names[0], color=FAINT)
    axes.set_xlabel(f"{names[1]} degree" if names[1] in ("outer", "inner") else names[1], color=FAINT)
    axes.tick_params(length=0, colors=FAINT)
    axes.spines[:].set_visible(False)
