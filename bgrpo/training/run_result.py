"""What a training run left behind, as its folder says, for people and for machines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.display.part_report import part_table
from bgrpo.display.run_report import comparison_table
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.runs.budget import Spent
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.learning_signal import conclusions, steps_without_update
from bgrpo.runs.mlflow_tracking import open_command, tracking_uri
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.failed_checks import failures_of_steps
from bgrpo.training.run_attempt import say


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder.
        stopped: True when it was asked to stop before its last step; its newest checkpoint is complete.
        comparison: before and after on the test problems; None when not asked for, or stopped.
        tracking_uri: where MLflow recorded it; None when it did not.
        steps_without_update: steps that had nothing to learn from.
        conclusions: what kept it from learning, and what looks like reward hacking, see
            :func:`bgrpo.runs.learning_signal.conclusions`.
    """

    folder: RunFolder
    stopped: bool
    comparison: EvaluationComparison | None
    tracking_uri: str | None
    steps_without_update: int
    conclusions: list[str]


def result_of(
    config: TrainConfig, folder: RunFolder, stopped: bool, comparison: EvaluationComparison | None = None
) -> RunResult:
    """What a run left behind, as its folder says."""
    recorded = config.tracking.enabled and folder.info().get("mlflow_run_id")
    uri = tracking_uri(config.tracking, config.run.dir) if recorded else None
    steps = folder.metrics()
    return RunResult(folder, stopped, comparison, uri, steps_without_update(steps), conclusions(config, steps))


def spent_so_far(store: CheckpointStore) -> Spent:
    """What a run has spent up to its newest checkpoint."""
    newest = store.latest()
    if newest is None:
        return Spent()
    return replace(Spent.from_metrics(store.metrics(newest)), steps=CheckpointStore.step_of(newest))


def summary(result: RunResult) -> dict[str, Any]:
    """A run's result for machines."""
    folder, comparison = result.folder, result.comparison
    return {
        "run": folder.name,
        "status": "stopped" if result.stopped else "finished",
        "folder": str(folder.path),
        "steps": folder.info().get("steps"),
        "problems": folder.info().get("problems"),
        "policy": None if result.stopped else str(folder.policy),
        "report": None if result.stopped else str(folder.report_path),
        "tracking_uri": result.tracking_uri,
        "failed_checks": failures_of_steps(folder.metrics()),
        "steps_without_update": result.steps_without_update,
        "conclusions": result.conclusions,
        "metrics": None
        if comparison is None
        else {
            row.metric: {
                "before": row.before,
                "after": row.after,
                "difference": row.difference,
                "problems": row.problems,
            }
            for row in comparison.rows()
        },
    }


def announce(result: RunResult, config: TrainConfig, console: Console, command: str) -> None:
    """The end of a run, for people; ``command`` is what goes on with it."""
    folder = result.folder
    if result.stopped:
        say(console, f"stopped; go on with: {command} --resume {folder.path}")
        return
    if result.comparison is not None:
        console.print(comparison_table(result.comparison, f"{folder.name}: before and after"))
    steps = folder.metrics()
    if (parts := part_table(config.reward, steps)) is not None:
        console.print(parts)
    for line in failures_of_steps(steps):
        console.print(f"training: {line}", soft_wrap=True, highlight=False, markup=False)
    lines = [("policy", str(folder.policy)), ("plot", str(folder.report_path)), ("run", str(folder.path))]
    if result.tracking_uri is not None:
        lines.append(("MLflow", open_command(result.tracking_uri)))
    for label, value in lines:
        say(console, f"{label:>7}: {value}")
    for line in result.conclusions:
        say(console, line)
    sys.stdout.flush()
