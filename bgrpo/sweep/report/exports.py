"""A sweep's numbers for other programs: ``trials.csv``, ``curves.csv`` (one value per line) and ``summary.json``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bgrpo.files import atomic_file, write_atomically
from bgrpo.sweep.report.records import AMOUNTS, SweepRecord, TrialRecord
from bgrpo.sweep.report.summary import SweepSummary

CURVES = ("validation/", "outcome/")  # prefixes
TRIAL_COLUMNS = ("id", "arm", "phase", "seed", "state", "reason", "cpu_hours", "gpu_hours")
SINGLE_CURVES = ("reward_mean", "solved_groups", "top1_accuracy", "kl", "entropy", "grad_norm", "learning_rate")


def write_exports(summary: SweepSummary, folder: Path) -> None:
    """Write the three files, each complete or not at all."""
    trials = [_trial_row(trial) for trial in summary.sweep.trials]
    columns = list(dict.fromkeys(name for row in trials for name in row))
    _write_csv(folder / "trials.csv", columns, ([row.get(name) for name in columns] for row in trials))
    header = ["trial", "arm", "phase", "seed", *AMOUNTS, "metric", "value"]
    _write_csv(folder / "curves.csv", header, _curve_rows(summary.sweep))
    write_atomically(folder / "summary.json", json.dumps(finite(summary_tree(summary)), indent=1) + "\n")


def summary_tree(summary: SweepSummary) -> dict[str, Any]:
    """The report's numbers as plain values; bounds that do not exist are infinite."""
    sweep, verdict = summary.sweep, summary.verdict
    return {
        "sweep": sweep.name,
        "state": sweep.state,
        "metric": summary.metric,
        "baseline": sweep.baseline,
        "verdict": {key: getattr(verdict, key) for key in ("headline", "winner", "sentences", "cautions")},
        "arms": {
            arm.name: {
                "trials": len(arm.trials),
                "seeds": list(next(iter(arm.metrics.values())).by_seed) if arm.metrics else [],
                "metrics": {name: asdict(row) for name, row in arm.metrics.items()},
                "widths": [saving._asdict() | {"saving": saving.saving} for saving in arm.savings],
                "ranks": {"before": arm.ranks_before, "after": arm.ranks},
                "cost": asdict(arm.cost),
            }
            for arm in summary.arms
        },
        "differences": {
            metric: {
                comparison.arm: {
                    "seeds": comparison.seeds,
                    "conclusion": comparison.conclusion if metric == summary.metric else None,
                    "adjusted_p": comparison.adjusted_p,
                    "effect": asdict(comparison.effect) if comparison.effect else None,
                }
                for comparison in comparisons
            }
            for metric, comparisons in summary.differences.items()
        },
        "versions": sweep.versions,
        "notes": sweep.notes,
    }


def _trial_row(trial: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(trial, name) for name in TRIAL_COLUMNS}
    row |= {name: trial.used.get(name) for name in AMOUNTS}
    row |= {key: _cell(value) for key, value in trial.overrides.items()}
    for name in trial.steps[-1] if trial.steps else ():
        if name.startswith("validation/"):
            row[name] = trial.steps[-1][name]
    if trial.comparison is not None:
        for when, evaluation in (("before", trial.comparison.before), ("after", trial.comparison.after)):
            row |= {f"test/{name}/{when}": value for name, value in evaluation.metrics().items()}
    return row


def _curve_rows(sweep: SweepRecord) -> Iterator[list[Any]]:
    for trial in sweep.trials:
        for step in trial.steps:
            used = [step[name] for name in AMOUNTS]
            for name, value in step.items():
                if value is not None and (name.startswith(CURVES) or name in SINGLE_CURVES):
                    yield [trial.id, trial.arm, trial.phase, trial.seed, *used, name, value]


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def finite(tree: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
