"""The report as one HTML page that needs nothing but itself: pictures inside, no network, every text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgrpo.display.run_report import RAW_METRICS, metric_label
from bgrpo.evaluation.intervals import Interval
from bgrpo.sweep.report.pictures import Picture
from bgrpo.sweep.report.records import AMOUNTS, CONFIRM, TrialRecord
from bgrpo.sweep.report.statistics import smallest_sign_flip_p
from bgrpo.sweep.report.summary import ArmSummary, SweepSummary
from bgrpo.sweep.report.verdict import AMOUNT_LABELS, difference_text

TEMPLATES = Path(__file__).resolve().parents[2] / "assets"
TEMPLATE = "sweep_report.html"
NONE = "–"


def render_page(summary: SweepSummary, pictures: Sequence[Picture], folder: Path) -> str:
    """The page's HTML.

    Args:
        summary: what it says.
        pictures: drawn pictures, ``<name>.png`` in ``folder``.
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
    sweep = summary.sweep
    images = {picture.name: _image(picture, folder) for picture in pictures}
    return environment.get_template(TEMPLATE).render(
        name=sweep.name,
        state=sweep.state,
        progress=_progress(sweep.trials),
        verdict=summary.verdict,
        metric=metric_label(summary.metric),
        baseline=sweep.baseline,
        images=images,
        results=_results_table(summary),
        differences=_difference_tables(summary),
        widths=_width_rows(summary),
        width_sentences=[sentence for arm in summary.arms if (sentence := width_sentence(arm))],
        costs=_cost_rows(summary),
        amount_labels=[AMOUNT_LABELS[name] for name in AMOUNTS],
        search=_search_tables(summary),
        trials=[_trial_cells(trial) for trial in sweep.trials],
        configs=_configs(summary),
        sweep_config=sweep.config_text,
        versions=_flat(sweep.versions),
        notes=sweep.notes,
    )


def width_sentence(arm: ArmSummary) -> str:
    """Does training reduce the width that a target accuracy needs? In one sentence; empty when not measured."""
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


def _image(picture: Picture, folder: Path) -> dict[str, str]:
    content = base64.b64encode((folder / f"{picture.name}.png").read_bytes()).decode("ascii")
    return {"source": f"data:image/png;base64,{content}", "caption": picture.caption}


def _progress(trials: Sequence[TrialRecord]) -> str:
    states = ("finished", "running", "pending", "stopped", "failed")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none yet"


def _results_table(summary: SweepSummary) -> list[dict[str, Any]]:
    rows = []
    for arm in summary.arms:
        seeds = list(next(iter(arm.metrics.values())).by_seed) if arm.metrics else []
        rows += [
            {
                "arm": arm.name,
                "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})",
                "metric": metric_label(name),
                "decides": name == summary.metric,
                "before": _value(name, arm.metrics[name].before),
                "after": _value(name, arm.metrics[name].after.mean),
                "bootstrap": _bounds(name, arm.metrics[name].after),
                "t": _bounds(name, arm.metrics[name].after_t),
                "gain": difference_text(name, arm.metrics[name].gain),
            }
            for name in summary.metrics
            if arm.metrics
        ]
    return rows


def _difference_tables(summary: SweepSummary) -> list[dict[str, Any]]:
    rows = []
    for name, comparisons in summary.differences.items():
        for comparison in comparisons:
            effect = comparison.effect
            if effect is None:
                continue
            several = effect.seeds > 1
            rows.append(
                {
                    "metric": metric_label(name),
                    "decides": name == summary.metric,
                    "arm": comparison.arm,
                    "seeds": effect.seeds,
                    "difference": difference_text(name, effect.bootstrap).partition(" [")[0],
                    "bootstrap": _bounds(name, effect.bootstrap, sign=True) if several else NONE,
                    "t": _bounds(name, effect.seed_interval, sign=True),
                    "problems": _bounds(name, effect.problem_interval, sign=True),
                    "sign_flip": f"{effect.p_sign_flip:.3f} (≥ {smallest_sign_flip_p(effect.seeds):.3f})",
                    "p": NONE if comparison.adjusted_p is None else f"{comparison.adjusted_p:.3f}",
                    "conclusion": comparison.conclusion if name == summary.metric else "for orientation",
                }
            )
    return sorted(rows, key=lambda row: not row["decides"])


def _width_rows(summary: SweepSummary) -> list[dict[str, str]]:
    return [
        {
            "arm": arm.name,
            "width": str(saving.width),
            "target": f"{100 * saving.target:.1f} %",
            "needed": _width_text(saving.needed.mean),
            "interval": f"{_width_text(saving.needed.low)} to {_width_text(saving.needed.high)}",
            "saving": NONE if math.isinf(saving.saving.mean) else f"{100 * saving.saving.mean:.0f} %",
        }
        for arm in summary.arms
        for saving in arm.savings
    ]


def _width_text(width: float) -> str:
    return "none measured" if math.isinf(width) else f"{width:.1f}".removesuffix(".0")


def _cost_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm.name,
            "used": [_count(arm.cost.used.get(name)) for name in AMOUNTS],
            "core_hours": _hours(arm.cost.core_hours),
            "search": _hours(arm.cost.search_core_hours),
            "gpu_hours": _hours(arm.cost.gpu_hours),
        }
        for arm in summary.arms
    ]


def _search_tables(summary: SweepSummary) -> list[dict[str, Any]]:
    tables = []
    for arm in summary.arms:
        if not arm.searched:
            continue
        entry = summary.sweep.selection.get(arm.name) or {}
        metric = summary.sweep.metric
        varied = [
            key
            for key in dict.fromkeys(key for trial in arm.searched for key in trial.overrides)
            if len({str(trial.overrides.get(key)) for trial in arm.searched}) > 1
        ]
        rows = []
        for trial in arm.searched:
            values = trial.validation(metric)
            last = trial.value if trial.value is not None else values[-1] if values else None
            rows.append(
                {
                    "id": trial.id,
                    "cells": [_short(trial.overrides.get(key)) for key in varied],
                    "seed": trial.seed,
                    "steps": _count(trial.used.get("steps")),
                    "last": NONE if last is None else _value(metric, last),
                    "best": _value(metric, max(values)) if values else NONE,
                    "selected": _is_selected(trial, entry),
                    "state": trial.state,
                }
            )
        tables.append(
            {
                "arm": arm.name,
                "metric": metric_label(metric),
                "varied": varied,
                "rows": rows,
                "selected": _selected_text(metric, entry),
            }
        )
    return tables


def _selected_text(metric: str, entry: dict[str, Any]) -> str | None:
    value = entry.get("value")
    return None if value is None else _value(metric, float(value))


def _is_selected(trial: TrialRecord, entry: dict[str, Any]) -> bool:
    return trial.point is not None and trial.point == entry.get("point")


def _trial_cells(trial: TrialRecord) -> dict[str, Any]:
    return {
        "id": trial.id,
        "arm": trial.arm,
        "phase": trial.phase,
        "seed": trial.seed,
        "state": trial.state,
        "attempts": trial.attempts,
        "steps": _count(trial.used.get("steps")),
        "reason": trial.reason,
    }


def _configs(summary: SweepSummary) -> list[dict[str, str]]:
    """Of each arm the configuration of one run, a confirm trial where there is one."""
    configs = []
    for arm in summary.arms:
        texts = [trial for trial in [*arm.trials, *arm.searched] if trial.config_text]
        if texts:
            phase = "confirm" if texts[0].phase == CONFIRM else texts[0].phase
            configs.append({"arm": arm.name, "trial": f"{texts[0].id} ({phase})", "text": texts[0].config_text})
    return configs


def _value(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric in RAW_METRICS else f"{100 * value:.1f} %"


def _bounds(metric: str, interval: Interval, sign: bool = False) -> str:
    if interval.high - interval.low == 0 or math.isinf(interval.high):
        return NONE
    scale, form = (1, ".3f") if metric in RAW_METRICS else (100, ".1f")
    form = f"+{form}" if sign else form
    return f"{scale * interval.low:{form}} to {scale * interval.high:{form}}"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _hours(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _short(value: Any) -> str:
    return NONE if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}{key} ")]
    return [(prefix.strip(), str(tree))]
