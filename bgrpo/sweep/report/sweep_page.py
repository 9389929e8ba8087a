"""The report as one HTML page that needs nothing but itself: pictures inside, no network, every text escaped.

What the page says and in which order is in the template; here are the numbers' forms.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bgrpo.display.run_report import is_fraction, metric_label
from bgrpo.evaluation.intervals import Interval
from bgrpo.sweep.report.sweep_records import AMOUNTS
from bgrpo.sweep.report.sweep_summary import ArmSummary, SweepSummary
from bgrpo.sweep.report.sweep_verdict import AMOUNT_LABELS, difference_text

TEMPLATES = Path(__file__).resolve().parents[2] / "assets"
TEMPLATE = "sweep_report.html"
NONE = "–"


def render_page(summary: SweepSummary, captions: Mapping[str, str], folder: Path) -> str:
    """The page's HTML.

    Args:
        summary: what it says.
        captions: name -> caption of each picture, ``<name>.png`` in ``folder``.
        folder: where they lie.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": metric_label,
        "value": _value,
        "bounds": _bounds,
        "difference": lambda interval, metric: difference_text(metric, interval),
        "count": lambda value: NONE if value is None else f"{value:,.0f}",
        "short": lambda value: NONE if value is None else f"{value:.3g}" if isinstance(value, float) else str(value),
        "width": _width_text,
        "flat": _flat,
        "varied": _varied,
        "width_sentence": width_sentence,
    }
    pictures = {name: base64.b64encode((folder / f"{name}.png").read_bytes()).decode("ascii") for name in captions}
    states = Counter(record.trial.state for record in summary.sweep.trials)
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        sweep=summary.sweep,
        verdict=summary.verdict,
        captions=captions,
        pictures=pictures,
        amounts={name: AMOUNT_LABELS[name] for name in AMOUNTS},
        progress=", ".join(
            f"{states[state]} {state}"
            for state in ("finished", "running", "pending", "stopped", "failed")
            if states[state]
        ),
    )


def width_sentence(arm: ArmSummary) -> str:
    """Whether training reduces the width that a target accuracy needs, in one sentence; empty when not measured."""
    if not arm.savings:
        return ""
    widest = arm.savings[-1]
    target = f"{100 * widest.target:.1f} %, which the starting policy solves with width {widest.width},"
    if math.isinf(widest.needed.mean):
        return f"{arm.name}: {target} is not reached after training at any measured width."
    low, high = _width_text(widest.needed.low), _width_text(widest.needed.high)
    saving = round(100 * widest.saving.mean)
    change = f"{saving} % less" if saving >= 0 else f"{-saving} % more"
    if widest.needed.high <= widest.width / 2:
        answer = "the width is at least halved"
    elif widest.needed.high < widest.width:
        answer = "the width shrinks; that it halves is not shown"
    elif widest.needed.low > widest.width:
        answer = "the width grows"
    else:
        answer = "no reduction shown"
    return (
        f"{arm.name}: {target} needs width {_width_text(widest.needed.mean)} after training (95 % interval {low} to "
        f"{high}), {change} inference compute, taking decoded tokens as proportional to the width: {answer}."
    )


def _varied(arm: ArmSummary) -> list[str]:
    """Keys in which an arm's search trials differ."""
    points = [record.trial.overrides for record in arm.searched]
    keys = dict.fromkeys(key for point in points for key in point)
    return [key for key in keys if len({str(point.get(key)) for point in points}) > 1]


def _width_text(width: float) -> str:
    return "none measured" if math.isinf(width) else f"{width:.1f}".removesuffix(".0")


def _value(value: float | None, metric: str) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if is_fraction(metric) else f"{value:.3f}"


def _bounds(interval: Interval, metric: str, sign: str = "") -> str:
    if interval.high - interval.low == 0 or math.isinf(interval.high):
        return NONE
    scale, form = (100, ".1f") if is_fraction(metric) else (1, ".3f")
    return f"{scale * interval.low:{sign}{form}} to {scale * interval.high:{sign}{form}}"


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}{key} ")]
    return [(prefix.strip(), str(tree))]
