"""The step benchmark's tables, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bgrpo.bench.output import DPI, make_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

RUN_PARTS: dict[str, Callable[[Row], float]] = {
    "rollout, checks": lambda row: row["rollout"],
    "weights": lambda row: row["weights"],
    "forward, backward": lambda row: row["learn"] - row["optimizer"],
    "optimizer": lambda row: row["optimizer"],
}
"""Parts of a run's step, in seconds; during the first one the learner is idle, during the others the actors are."""

COLORS = ("#3b8ed0", "#7a9a01", "#d1742b", "#0b4f8a")

_TABLES: dict[str, tuple[str, str, list[str]]] = {
    "run": (
        "training runs: seconds of a step (median)",
        "run|learners|rollout, checks|weights|forward, backward|optimizer|total",
        ["{run}|{learners}|{rollout:#.3g}|{weights:#.3g}|{learn_alone:#.3g}|{optimizer:#.3g}|{total:#.3g}"],
    ),
    "overlap": (
        "the next step decoded ahead (rollout.max_staleness), 1 actor and 1 learner, a thread each: seconds of a step",
        "run|staleness|rollout|learn|total|against the longer of both",
        [
            "{run}|0|{rollout_s:#.3g}|{learn_s:#.3g}|{total_s:#.3g}|",
            "{run}|1|meanwhile|{learn_ahead_s:#.3g}|{total_ahead_s:#.3g}|{ratio:.2f}×",
        ],
    ),
    "learner": (
        "learner against bare PyTorch, and its matrix products alone: CPU seconds of an update, one thread",
        "update|learner|bare|ratio|products|gap",
        ["{case}|{learner_s:#.3g}|{bare_s:#.3g}|{ratio:.2f}×|{floor_s:#.3g}|{gap:.1f}×"],
    ),
    "sharing": (
        "packed groups against padded rows, and against padded rows with our products: CPU seconds, one thread",
        "update|completions|tokens|packed|padded|ratio|oneDNN|ratio",
        [
            "{case}|{completions}|{share:.0%}|{packed_s:#.3g}|{padded_s:#.3g}|{ratio:.1f}×|{padded_onednn_s:#.3g}|"
            "{same_products_ratio:.1f}×"
        ],
    ),
    "verification": (
        "rollouts of a step, with and without checks: seconds",
        "run|actors|checked|unchecked|ratio",
        ["{run}|{actors}|{checked_s:#.3g}|{unchecked_s:#.3g}|{ratio:.2f}×"],
    ),
    "tracking": (
        "tracking: CPU seconds of a step, in the driver",
        "run|seconds|of a step",
        ["{run}|{seconds_per_step:.4f}|{share:.2%}"],
    ),
}
"""Title, headings, and the lines that a row makes, by the row's ``part``."""

_DERIVED: dict[str, Callable[[Row], dict[str, float]]] = {
    "run": lambda row: {"learn_alone": RUN_PARTS["forward, backward"](row)},
    "learner": lambda row: {"gap": row["learner_s"] / row["floor_s"]},
    "sharing": lambda row: {"share": row["tokens"] / row["padded_tokens"]},
}


def step_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per kind of measurement that is there."""
    tables = []
    for part, (title, headings, lines) in _TABLES.items():
        chosen = [{**row, **_DERIVED.get(part, lambda row: {})(row)} for row in rows if row["part"] == part]
        cells = [line.format_map(row).split("|") for row in chosen for line in lines]
        tables += [make_table(title, headings.split("|"), cells)] if cells else []
    return tables


def draw_step(result: Mapping[str, Any]) -> Figure:
    """Where the steps of real runs went, and how packed groups compare with padded rows.

    A panel whose part was not measured says so.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    runs, sharing = ([row for row in result["rows"] if row["part"] == part] for part in ("run", "sharing"))
    for panel, part, rows in ((left, "run", runs), (right, "sharing", sharing)):
        panel.invert_yaxis()
        if not rows:
            panel.set_axis_off()
            panel.text(0.5, 0.5, f"not measured: --part {part}", ha="center", transform=panel.transAxes)
    names = [f"{row['run']}, {row['learners']} learner{'s' * (row['learners'] > 1)}" for row in runs]
    start = [0.0] * len(runs)
    for (part, seconds), color in zip(RUN_PARTS.items(), COLORS, strict=True):
        widths = [seconds(row) / row["total"] for row in runs]
        left.barh(names, widths, left=start, label=part, color=color)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    left.set_title("share of a training step")
    if runs:
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    names = [f"{row['case']}\n{row['completions']}" for row in sharing]
    bars = right.barh(names, [row["ratio"] for row in sharing], color=COLORS[0], height=0.6)
    right.bar_label(bars, [f" {row['ratio']:.1f}×" for row in sharing])
    right.margins(x=0.12)
    right.set_title("packed update: times as fast as padded rows")
    return figure
