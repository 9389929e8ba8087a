"""What a run's report says of the named parts of its reward: a table, and a panel of their shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bgrpo.config import RewardSection

COLORS = ("#1f6fb2", "#d55e00", "#009e73", "#cc79a7", "#8c6bb1", "#b8860b", "#56b4e9", "#444444")  # colour-blind safe
SHARES_TITLE = "parts' shares of the variance in groups"
TENTH = 10
LEGEND_COLUMNS, LABEL_CHARACTERS = 3, 16
Steps = Sequence[Mapping[str, Any]]


def part_table(reward: RewardSection, steps: Steps) -> Table | None:
    """A row for each part: what it was in the first tenth of the steps, and what it is in the last.

    None where the reward has no named parts, or there is no step.
    """
    if not reward.parts or not steps:
        return None
    count = max(1, len(steps) // TENTH)
    first, last = steps[:count], steps[-count:]
    shown = "the last step" if count == 1 else f"means of the last {count} steps"
    caption = f"{shown}; share: of the variance of the weighted sum within groups"
    table = Table(title="parts of the reward", caption=caption, box=None, padding=(0, 1, 0, 0))
    table.add_column("part")
    for name in ("weight", "at first", "mean", "spread", "share", "none", "failed", "s/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, part in reward.parts.items():
        values = [_mean(last, name, key) for key in ("mean", "spread", "share", "none", "failed", "seconds")]
        forms = (".3f", ".3f", ".0%", ".0%", ".0%", ".2g")
        texts = [_text(value, form) for value, form in zip(values, forms, strict=True)]
        table.add_row(name, f"{part.weight:g}", _text(_mean(first, name, "mean"), ".3f"), *texts)
    return table


def parts_with_shares(reward: RewardSection, steps: Steps) -> list[str]:
    """The parts that are learned from, where there are several and their shares are known."""
    weighted = [name for name, part in reward.parts.items() if part.weight]
    known = any(step.get(f"part/{name}/share") is not None for step in steps for name in weighted)
    return weighted if len(weighted) > 1 and known else []


def draw_shares(axes: Axes, steps: Steps, names: Sequence[str], width: int) -> None:
    """A line per part, each the mean over ``width`` steps."""
    from matplotlib.ticker import PercentFormatter

    for number, name in enumerate(names):
        key = f"part/{name}/share"
        known = [(step["step"], step[key]) for step in steps if step.get(key) is not None]
        means = [fmean(value for _, value in known[max(0, i + 1 - width) : i + 1]) for i in range(len(known))]
        label = name if len(name) <= LABEL_CHARACTERS else f"{name[: LABEL_CHARACTERS - 1]}…"
        axes.plot([step for step, _ in known], means, color=COLORS[number % len(COLORS)], linewidth=1.5, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(  # below: with several parts no corner is free of lines
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=8,
        borderpad=0,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _mean(steps: Steps, part: str, key: str) -> float | None:
    known = [value for step in steps if (value := step.get(f"part/{part}/{key}")) is not None]
    return fmean(known) if known else None


def _text(value: float | None, form: str) -> str:
    """As many digits as ``form`` says; what rounds to zero has no sign."""
    return "–" if value is None else format(value, f"z{form}")
