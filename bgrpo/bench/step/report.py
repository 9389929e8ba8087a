"""The step benchmark's tables, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from bgrpo.display.png import write_png

Row = Mapping[str, Any]

RUN_PARTS: dict[str, Callable[[Row], float]] = {
    "rollout, checks": lambda row: row["rollout"],
    "weights": lambda row: row["weights"],
    "forward, backward": lambda row: row["learn"] - row["optimizer"],
    "optimizer": lambda row: row["optimizer"],
}
"""Parts of a run's step, in seconds; during the first one the learner is idle, during the others the actors are."""

COLORS = ("#3b8ed0", "#7a9a01", "#d1742b", "#0b4f8a")
_DPI = 150


def step_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per kind of measurement that is there."""
    of_parts = {
        part: [row for row in rows if row["part"] == part]
        for part in ("run", "overlap", "learner", "sharing", "verification", "tracking")
    }
    return [_TABLES[part](chosen) for part, chosen in of_parts.items() if chosen]


def plot_step(rows: Sequence[Row], out: Path) -> None:
    """Write a PNG: where the steps of real runs went, and how packed groups compare with padded rows.

    A panel whose part was not measured says so.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel, part in ((left, "run"), (right, "sharing")):
        if not any(row["part"] == part for row in rows):
            panel.set_axis_off()
            panel.text(0.5, 0.5, f"not measured: --part {part}", ha="center", transform=panel.transAxes)
    runs = [row for row in rows if row["part"] == "run"]
    names = [f"{row['run']}, {row['learners']} learner{'s' * (row['learners'] > 1)}" for row in runs]
    start = [0.0] * len(runs)
    for (part, seconds), color in zip(RUN_PARTS.items(), COLORS, strict=True):
        widths = [seconds(row) / row["total"] for row in runs]
        left.barh(names, widths, left=start, label=part, color=color)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    left.set_title("share of a training step")
    left.invert_yaxis()
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    sharing = [row for row in rows if row["part"] == "sharing"]
    names = [f"{row['case']}\n{row['completions']}" for row in sharing]
    right.barh(names, [row["ratio"] for row in sharing], color=COLORS[0], height=0.6)
    for place, row in enumerate(sharing):
        right.annotate(f" {row['ratio']:.1f}×", (row["ratio"], place), va="center")
    right.set_title("packed update: times as fast as padded rows")
    right.invert_yaxis()
    write_png(figure, out)


def _run_table(rows: Sequence[Row]) -> Table:
    table = _table("training runs: seconds of a step (median)", ["run", "learners", *RUN_PARTS, "total"])
    for row in rows:
        parts = [_seconds(part(row)) for part in RUN_PARTS.values()]
        table.add_row(row["run"], str(row["learners"]), *parts, _seconds(row["total"]))
    return table


def _overlap_table(rows: Sequence[Row]) -> Table:
    title = (
        "the next step decoded ahead (rollout.max_staleness), 1 actor and 1 learner, a thread each: seconds of a step"
    )
    table = _table(title, ["run", "staleness", "rollout", "learn", "total", "against the longer of both"])
    for row in rows:
        table.add_row(row["run"], "0", *(_seconds(row[name]) for name in ("rollout_s", "learn_s", "total_s")), "")
        ahead = [_seconds(row[name]) for name in ("learn_ahead_s", "total_ahead_s")]
        table.add_row(row["run"], "1", "meanwhile", *ahead, f"{row['ratio']:.2f}×")
    return table


def _learner_table(rows: Sequence[Row]) -> Table:
    title = "learner against bare PyTorch, and its matrix products alone: CPU seconds of an update, one thread"
    table = _table(title, ["update", "learner", "bare", "ratio", "products", "gap"])
    for row in rows:
        times = [_seconds(row[name]) for name in ("learner_s", "bare_s")]
        gap = row["learner_s"] / row["floor_s"]
        table.add_row(row["case"], *times, f"{row['ratio']:.2f}×", _seconds(row["floor_s"]), f"{gap:.1f}×")
    return table


def _sharing_table(rows: Sequence[Row]) -> Table:
    title = "packed groups against padded rows, and against padded rows with our products: CPU seconds, one thread"
    headings = ["update", "completions", "tokens", "packed", "padded", "ratio", "oneDNN", "ratio"]
    table = _table(title, headings)
    for row in rows:
        table.add_row(
            row["case"],
            row["completions"],
            f"{row['tokens'] / row['padded_tokens']:.0%}",
            _seconds(row["packed_s"]),
            _seconds(row["padded_s"]),
            f"{row['ratio']:.1f}×",
            _seconds(row["padded_onednn_s"]),
            f"{row['same_products_ratio']:.1f}×",
        )
    return table


def _verification_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "rollouts of a step, with and without checks: seconds", ["run", "actors", "checked", "unchecked", "ratio"]
    )
    for row in rows:
        table.add_row(
            row["run"],
            str(row["actors"]),
            _seconds(row["checked_s"]),
            _seconds(row["unchecked_s"]),
            f"{row['ratio']:.2f}×",
        )
    return table


def _tracking_table(rows: Sequence[Row]) -> Table:
    table = _table("tracking: CPU seconds of a step, in the driver", ["run", "seconds", "of a step"])
    for row in rows:
        table.add_row(row["run"], f"{row['seconds_per_step']:.4f}", f"{row['share']:.2%}")
    return table


_TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    "run": _run_table,
    "overlap": _overlap_table,
    "learner": _learner_table,
    "sharing": _sharing_table,
    "verification": _verification_table,
    "tracking": _tracking_table,
}


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return table


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"
