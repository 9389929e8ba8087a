"""The result as a picture: one line of panels per model, one group of bars per case, the floor as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgrpo.bench.rollouts.cases import ENGINES
from bgrpo.display.png import write_png

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

DPI = 150
INK, FAINT = "#222222", "#777777"
COLORS = {
    "bgrpo-bf16": "#0b4f8a",
    "bgrpo": "#3b8ed0",
    "generate": "#d1742b",
    "ctranslate2": "#7a9a01",
    "ctranslate2-batched": "#b5c95a",
    "loop": "#999999",
}
FLOOR_STYLES = {"fp32": "-", "bf16": ":"}

_BAR = 0.8  # of the place of a group
_NEIGHBOURS = 3  # bars of a group; the figures over more of them would overlap unless upright

Row = Mapping[str, Any]


def plot_rollouts(rows: Sequence[Row], machine: Mapping[str, Any], out: Path) -> None:
    """Write a PNG of sequences per second.

    Over each of our bars stands how many times as fast as ``generate`` it is, or, without that, the rate.

    Args:
        rows: see :mod:`bgrpo.bench.rollouts.rows`; those that were not timed are left out.
        machine: see :func:`bgrpo.bench.machine.describe_machine`.
        out: target file.
    """
    from matplotlib.figure import Figure

    models = _panels([row for row in rows if row["skipped"] is None])
    groups = max((sum(map(_width, panels.values())) for panels in models.values()), default=2)
    figure = Figure(figsize=(2 + 1.6 * groups, 1.2 + 3.2 * len(models)), dpi=DPI, layout="constrained")
    torch = machine["versions"]["torch"]
    title = (
        f"Rollouts per second: {machine['cpu']}, {machine['threads']} thread(s), torch {torch}, tuned malloc for all"
    )
    figure.suptitle(title, fontsize=11, color=INK)
    handles: dict[str, Artist] = {}
    for model, panels in zip(
        figure.subfigures(len(models) or 1, 1, squeeze=False)[:, 0], models.values(), strict=False
    ):
        widths = [*map(_width, panels.values())]
        if sum(widths) < groups:  # leave room, so that bars are as wide as those of other models
            widths.append(groups - sum(widths))
        places = model.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for axes, (name, cases) in zip(places, panels.items(), strict=False):
            _draw_panel(axes, name, cases)
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    write_png(figure, out)


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[Row]]]]:
    """Rows by model, panel and case: rates of different models, or of beams and samples, share no axis."""
    models: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        kind = "beam search" if row["mode"] == "beam" else "sampling"
        ends = ", answers that end" if row["prompt_tokens"] is None else ""
        panels = models.setdefault(row["model"], {})
        panels.setdefault(f"{row['model']}: {kind}{ends}", {}).setdefault(row["case"], []).append(row)
    return models


def _width(cases: Mapping[str, Sequence[Row]]) -> float:
    """Of a panel, in groups of bars; a single group needs room for its title."""
    return max(len(cases), 1.7)


def _draw_panel(axes: Axes, title: str, cases: Mapping[str, Sequence[Row]]) -> None:
    names = [name for name in COLORS if any(row["name"] == name for rows in cases.values() for row in rows)]
    width = _BAR / len(names)
    upright = len(names) > _NEIGHBOURS
    for place, rows in enumerate(cases.values()):
        for row in rows:
            left = place - _BAR / 2 + width * names.index(row["name"])
            rate = row["sequences_per_s"]
            label = ENGINES[row["name"]].label
            axes.bar(left, rate, width, align="edge", color=COLORS[row["name"]], label=label)
            axes.annotate(
                _bar_text(row),
                (left + width / 2, rate),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90 if upright else 0,
                fontsize=7,
                color=INK,
            )
        _draw_floors(axes, place, rows)
    axes.set_xticks(range(len(cases)), [f"{rows[0]['prompts']} × {rows[0]['beam_width']}" for rows in cases.values()])
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.margins(y=0.2 if upright else 0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=FAINT)


def _draw_floors(axes: Axes, place: int, rows: Sequence[Row]) -> None:
    """A line over the group at the rate of the floor of each precision."""
    floors = {row["dtype"]: row["floor_sequences_per_s"] for row in rows if row["floor_sequences_per_s"]}
    for dtype, rate in floors.items():
        ends = (place - _BAR / 2, place + _BAR / 2)
        axes.hlines(rate, *ends, color=INK, linewidth=1.2, linestyle=FLOOR_STYLES[dtype], label=f"floor, {dtype}")


def _bar_text(row: Row) -> str:
    ratio = row["ratio_to_generate"]
    if row["engine"] == "bgrpo" and ratio is not None:
        return f"{ratio:.1f}×"
    return f"{row['sequences_per_s']:,.3g}" if row["sequences_per_s"] < 1000 else f"{row['sequences_per_s']:,.0f}"
