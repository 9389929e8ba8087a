"""The picture of a run's validations, drawn again after each of them while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgrpo.config import ORACLE
from bgrpo.display.png import write_png
from bgrpo.display.run_report import DPI, FAINT, INK, is_bounded, is_fraction, metric_label, tidy

PREFIX = "validation/"


class Curves(NamedTuple):
    """One panel: its title, and which metrics are drawn in it."""

    title: str
    holds: Callable[[str], bool]


PANELS = (
    Curves("solved by beams", lambda name: name in ("greedy", "top1") or name.startswith("beam@")),
    Curves("solved by samples; oracle: by either", lambda name: name == ORACLE or name.startswith("pass@")),
    Curves("beam-rank score", lambda name: name == "beam_rank_score"),
    Curves("rewards", lambda name: name.endswith("_reward") or name.startswith(("best_", "mean_"))),
)


def has_validation(metrics: Mapping[str, Any]) -> bool:
    """Whether a step's metrics hold those of a validation."""
    return any(name.startswith(PREFIX) for name in metrics)


def plot_validations(metrics: Sequence[Mapping[str, Any]], name: str, out: Path) -> None:
    """Write a PNG: one panel for beams, one for samples, one for the beam-rank score, one for rewards, as there are.

    Args:
        metrics: one mapping per training step, with ``step``; at least one of them of a validation.
        name: of the run.
        out: target file, complete or not at all.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lines = [line for line in metrics if has_validation(line)]
    names = list(dict.fromkeys(key.removeprefix(PREFIX) for line in lines for key in line if key.startswith(PREFIX)))
    panels = [(panel, [name for name in names if panel.holds(name)]) for panel in PANELS]
    panels = [(panel, drawn) for panel, drawn in panels if drawn]
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 4.2), dpi=DPI, layout="constrained")
    figure.suptitle(f"{name} · validations up to step {lines[-1]['step']}", fontsize=13, color=INK)
    for axes, (panel, drawn) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        for metric in drawn:
            points = [(line["step"], line[PREFIX + metric]) for line in lines if line.get(PREFIX + metric) is not None]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=metric_label(metric))
        axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
        axes.set_xlabel("training step", fontsize=9, color=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, max(1, lines[-1]["step"]) * 1.02)
        if all(map(is_bounded, drawn)):
            axes.set_ylim(0, 1.02)
        if all(map(is_fraction, drawn)):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if len(drawn) > 1:
            axes.legend(loc="best", edgecolor="none", framealpha=0.8, fontsize=8)
        tidy(axes, "y")
    write_png(figure, out)
