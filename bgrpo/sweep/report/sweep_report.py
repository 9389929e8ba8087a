"""The report of a sweep, or of one run, made again from its folder alone, while it runs too."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bgrpo.config import TrainConfig
from bgrpo.display.part_report import part_table
from bgrpo.display.run_report import plot_report
from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.files import atomic_file, write_atomically
from bgrpo.runs.learning_signal import conclusions
from bgrpo.runs.missing_steps import missing_steps
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.report.sweep_page import render_page
from bgrpo.sweep.report.sweep_pictures import draw_pictures
from bgrpo.sweep.report.sweep_records import AMOUNTS, SweepRecord, TrialRecord, is_sweep, read_steps
from bgrpo.sweep.report.sweep_summary import SweepSummary

CURVES = ("validation/", "outcome/", "part/")  # prefixes
SINGLE_CURVES = (
    "reward_mean",
    "score_mean",
    "solved_groups",
    "top1_accuracy",
    "kl",
    "entropy",
    "grad_norm",
    "learning_rate",
)

FORMULA_STARTS = ("=", "+", "-", "@", "\t")


def write_sweep_report(summary: SweepSummary) -> Path:
    """Write ``report/`` in a sweep's folder: index.html, pictures, trials.csv, curves.csv and summary.json.

    Returns:
        Path of ``index.html``.

    Raises:
        UserError: it cannot be written.
    """
    report = summary.sweep.folder / "report"
    try:
        report.mkdir(exist_ok=True)
        _write_csv(report / "trials.csv", [_trial_row(record) for record in summary.sweep.trials])
        _write_csv(report / "curves.csv", list(_curve_rows(summary.sweep)))
        write_atomically(report / "summary.json", json.dumps(finite(summary_tree(summary)), indent=1) + "\n")
        captions = draw_pictures(summary, report)
        write_atomically(report / "index.html", render_page(summary, captions, report))
    except OSError as error:
        raise UserError(f"{report}: the report cannot be written ({error.strerror or error})") from error
    return report / "index.html"


def write_run_report(run: RunFolder) -> tuple[Path, list[str], Table | None]:
    """Draw a run's ``report.png`` again from its folder, as far as it has come.

    Returns:
        The picture, what the steps say about the run and what is missing, and the table of its reward's parts.

    Raises:
        UserError: the evaluation is damaged, or something else stands in its place.
    """
    config = run.load_config(TrainConfig)
    has_evaluation = os.path.lexists(run.evaluation_path)
    comparison = EvaluationComparison.load(run.evaluation_path) if has_evaluation else None
    notes: list[str] = []
    steps = read_steps(run.metrics_path, notes)
    if not notes:
        notes += filter(None, [missing_steps(run)])
    if config.evaluation.final and run.status == "finished" and not has_evaluation:
        notes.append(f"{run.evaluation_path}: is missing: the report is without the table of before and after")
    plot_report(config, steps, comparison, run.name, run.report_path)
    return run.report_path, [*notes, *conclusions(config, steps)], part_table(config.reward, steps)


def find_folder(name: str, runs: Path) -> Path:
    """The folder of a sweep or run.

    Args:
        name: its name, or the path of its folder.
        runs: folder of all runs.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), runs / name):
        if is_sweep(path) or (path / "run.json").is_file():
            return path
    known = sorted(path.name for path in runs.glob("*") if is_sweep(path) or (path / "run.json").is_file())
    hint = f"it holds {', '.join(known[-5:])}" if known else "it holds none; give the path, or --runs DIR"
    raise UserError(f"no sweep or run {name!r} in {runs}/: {hint}")


def summary_tree(summary: SweepSummary) -> dict[str, Any]:
    """The report's numbers as plain values; bounds that do not exist are infinite."""
    sweep, verdict = summary.sweep, asdict(summary.verdict)
    return {
        "sweep": sweep.name,
        "state": sweep.plan.state,
        "metric": summary.metric,
        "baseline": sweep.baseline,
        "verdict": {key: verdict[key] for key in ("headline", "winner", "sentences", "cautions")},
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


def finite(tree: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _trial_row(record: TrialRecord) -> dict[str, Any]:
    trial, row = record.trial, _whose(record)
    row |= {"state": trial.state, "reason": trial.reason}
    row |= {"cpu_hours": trial.cpu_seconds / 3600, "gpu_hours": trial.gpu_seconds / 3600}
    row |= {name: record.used.get(name) for name in AMOUNTS}
    row |= {k: json.dumps(value) if isinstance(value, list | dict) else value for k, value in trial.overrides.items()}
    if record.steps:
        row |= {name: value for name, value in record.steps[-1].items() if name.startswith("validation/")}
    if record.comparison is not None:
        for when, evaluation in (("before", record.comparison.before), ("after", record.comparison.after)):
            row |= {f"test/{name}/{when}": value for name, value in evaluation.metrics().items()}
    return row


def _curve_rows(sweep: SweepRecord) -> Iterator[dict[str, Any]]:
    """One row per value."""
    for record in sweep.trials:
        for step in record.steps:
            used = _whose(record, "trial") | {name: step[name] for name in AMOUNTS}
            for name, value in step.items():
                if value is not None and (name.startswith(CURVES) or name in SINGLE_CURVES):
                    yield used | {"metric": name, "value": value}


def _whose(record: TrialRecord, name: str = "id") -> dict[str, Any]:
    trial = record.trial
    return {name: trial.id, "arm": trial.algorithm, "phase": trial.phase, "seed": trial.seed}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A column per key, in the order in which keys first come. No cell is a formula for a spreadsheet."""
    with atomic_file(path) as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)


def _harmless(value: Any) -> Any:
    """Numbers as they are; a text that a spreadsheet would compute starts with an apostrophe instead."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which the writer would not quote: a new row to many readers
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
