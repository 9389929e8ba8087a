"""The result as a picture: one line of panels per model, one group of bars per case, the floor as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bgrpo.bench.output import DPI
from bgrpo.bench.rollouts.cases import ENGINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#777777"
COLORS = {
    "bgrpo-bf16": "#0b4f8a",
    "bgrpo": "#3b8ed0",
    "generate": "#d1742b",
    "ctranslate2": "#7a9a01",
    "ctranslate2-batched": "#b5c95a",
    "openvino-genai": "#7b5aa6",
    "loop": "#999999",
}
FLOOR_STYLES = {"fp32": "-", "bf16": ":"}

_BAR = 0.8  # of the place of a group
_NEIGHBOURS = 3  # bars of a group; the figures over more of them would overlap unless upright

Row = Mapping[str, Any]
Cases = dict[str, list[Row]]


def draw_rollouts(result: Mapping[str, Any]) -> Figure:
    """Sequences per second.

    Over each of our bars stands how many times as fast as ``generate`` it is, or, without that, the rate.

    Args:
        result: ``rows`` of :mod:`bgrpo.bench.rollouts.timed_case`, of which those that were not timed are left out, and
            ``machine``.
    """
    from matplotlib.figure import Figure

    machine = result["machine"]
    models = _panels([row for row in result["rows"] if row["skipped"] is None])
    groups = max((sum(map(_width, panels.values())) for panels in models.values()), default=2)
    figure = Figure(figsize=(max(8, 2 + 1.6 * groups), 1.2 + 3.2 * len(models)), dpi=DPI, layout="constrained")
    where = f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['versions']['torch']}"
    figure.suptitle(f"Rollouts per second: {where}, tuned malloc for all", fontsize=11, color=INK)
    handles: dict[str, Any] = {}
    lines = figure.subfigures(max(1, len(models)), 1, squeeze=False)[:, 0]
    for line, panels in zip(lines, models.values(), strict=False):
        widths = [*map(_width, panels.values())]
        if sum(widths) < groups:  # leave room, so that bars are as wide as those of other models
            widths.append(groups - sum(widths))
        places = line.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for axes, (name, cases) in zip(places, panels.items(), strict=False):
            _draw_panel(axes, name, cases)
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _panels(rows: Sequence[Row]) -> dict[str, dict[str, Cases]]:
    """Rows by model, panel and case: rates of different models, or of beams and samples, share no axis."""
    models: dict[str, dict[str, Cases]] = {}
    for row in rows:
        kind = "beam search" if row["mode"] == "beam" else "sampling"
        ends = ", answers that end" if row["prompt_tokens"] is None else ""
        panel = models.setdefault(row["model"], {}).setdefault(f"{row['model']}: {kind}{ends}", {})
        panel.setdefault(row["case"], []).append(row)
    return models


def _width(cases: Cases) -> float:
    """Of a panel, in groups of bars; a single group needs room for its title."""
    return max(len(cases), 1.7)


def _draw_panel(axes: Axes, title: str, cases: Cases) -> None:
    names = [name for name in COLORS if any(row["name"] == name for rows in cases.values() for row in rows)]
    width = _BAR / len(names)
    upright = len(names) > _NEIGHBOURS
    for place, rows in enumerate(cases.values()):
        for row in rows:
            left = place - _BAR / 2 + width * names.index(row["name"])
            bars = axes.bar(
                left, row["sequences_per_s"], width, align="edge", color=COLORS[row["name"]],
                label=ENGINES[row["name"]].label,
            )  # fmt: skip
            axes.bar_label(bars, [_bar_text(row)], padding=2, rotation=90 if upright else 0, fontsize=7, color=INK)
            if row["floor_sequences_per_s"]:
                axes.hlines(
                    row["floor_sequences_per_s"], place - _BAR / 2, place + _BAR / 2, color=INK, linewidth=1.2,
                    linestyle=FLOOR_STYLES[row["dtype"]], label=f"floor, {row['dtype']}",
                )  # fmt: skip
    axes.set_xticks(range(len(cases)), [f"{rows[0]['prompts']} × {rows[0]['beam_width']}" for rows in cases.values()])
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.margins(y=0.2 if upright else 0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=FAINT)


def _bar_text(row: Row) -> str:
    if row["engine"] == "bgrpo" and row["ratio_to_generate"] is not None:
        return f"{row['ratio_to_generate']:.1f}×"
    return f"{row['sequences_per_s']:,.3g}" if row["sequences_per_s"] < 1000 else f"{row['sequences_per_s']:,.0f}"
