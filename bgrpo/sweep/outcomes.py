"""What trials' run folders say: how far a run is, how good it was, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgrpo.runs.folder import RunFolder
from bgrpo.sweep.plan import Trial, charge


@dataclass(frozen=True, slots=True)
class LastSteps:
    """The end of a run's metrics.

    Attributes:
        metrics: the newest value of each metric; empty before the first step.
        time: seconds since 1970 of the last step; None before the first.
    """

    metrics: dict[str, Any]
    time: float | None


def last_steps(run: Path) -> LastSteps:
    """The newest value of each metric of a run that goes on or has ended; its folder need not exist yet."""
    newest: dict[str, Any] = {}
    for line in RunFolder(run).metrics():
        newest |= {name: value for name, value in line.items() if value is not None}
    return LastSteps(newest, newest.get("time"))


def last_validation(run: Path, metric: str) -> float | None:
    """The last value of a validation metric."""
    value = last_steps(run).metrics.get(f"validation/{metric}")
    return None if value is None else float(value)


def settle_interrupted(trials: list[Trial], trials_dir: Path, metric: str) -> None:
    """Trials that a killed driver left running: those whose run is complete have finished, the others are pending.

    Their last attempt is charged up to its last step.
    """
    for trial in trials:
        if trial.state != "running":
            continue
        run = trials_dir / trial.id
        until = last_steps(run).time
        charge(trial, until if until is not None else trial.since or 0.0)
        trial.state = "pending"
        if RunFolder(run).info().get("status") == "finished":
            trial.state, trial.ended, trial.value = "finished", until, last_validation(run, metric)
