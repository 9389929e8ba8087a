"""A sweep's folder as its report reads it: whatever of each trial is there, while the sweep runs or long after.

Nothing here fails over one trial: what is missing or damaged is left out and named in ``notes``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bgrpo.errors import UserError, brief
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.files import read_file, unseal, unseal_yaml
from bgrpo.runs.budget import METRIC_PREFIX
from bgrpo.runs.metrics_lines import read_steps_of
from bgrpo.runs.missing_steps import missing_steps
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.sweep_folder import CONFIG, TRIALS, VERSIONS, SweepFolder
from bgrpo.sweep.sweep_plan import Phase, SavedPlan, Trial

AMOUNTS = ("steps", "gradient_steps", "completions", "tokens", "seconds")
"""What a run may have used: see :class:`bgrpo.runs.budget.Spent`, which counts them."""

DEFAULT_METRIC = "beam_rank_score"


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what the sweep says of it, and what its run folder holds."""

    trial: Trial
    steps: list[dict[str, Any]]  # one mapping per training step, with the amounts used until then
    comparison: EvaluationComparison | None  # before and after on the test problems; None until the run has it
    config_text: str  # the run's configuration as it stands in its folder

    @property
    def used(self) -> dict[str, float]:
        """Each amount until the last step; empty before the first."""
        return {name: float(self.steps[-1][name]) for name in AMOUNTS} if self.steps else {}

    def validation(self, metric: str) -> list[float]:
        """The values of a validation metric, in order of steps."""
        key = f"validation/{metric}"
        return [step[key] for step in self.steps if step.get(key) is not None]


@dataclass(frozen=True)
class SweepRecord:
    """A sweep."""

    folder: Path
    config: dict[str, Any]  # what it was asked for
    config_text: str  # the same as it stands in the folder
    versions: dict[str, Any]  # of packages, and the machine
    plan: SavedPlan
    trials: list[TrialRecord]  # in the order of the plan
    notes: list[str]  # what could not be read

    @property
    def name(self) -> str:
        """Name of the sweep: of its folder."""
        return self.folder.name

    @cached_property
    def arms(self) -> list[str]:
        """Names of the arms in the order of the plan."""
        return list(dict.fromkeys(trial.algorithm for trial in self.plan.trials))

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with: ``baseline`` of the configuration, else GRPO, else the first."""
        named = self.config.get("baseline")
        if named in self.arms:
            return str(named)
        arms = self.config.get("arms") or {}
        algorithms = {arm: ((arms.get(arm) or {}).get("set") or {}).get("algorithm", arm) for arm in self.arms}
        return next((arm for arm in self.arms if algorithms[arm] == "grpo"), next(iter(self.arms), None))

    @property
    def metric(self) -> str:
        """The metric that decides on test problems: the one by which the sweep selects on validation problems."""
        return str(self.config.get("metric") or DEFAULT_METRIC)

    def of(self, arm: str, phase: Phase | None = None) -> list[TrialRecord]:
        """The trials of an arm, or those in one phase."""
        return [t for t in self.trials if t.trial.algorithm == arm and phase in (None, t.trial.phase)]

    def evaluated(self, arm: str) -> dict[int, EvaluationComparison]:
        """Seed -> before and after on the test problems, of the arm's finished confirm trials, by seed."""
        done = {t.trial.seed: t.comparison for t in self.of(arm, "confirm") if t.comparison is not None}
        return {seed: done[seed] for seed in sorted(done)}


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return (folder / CONFIG).is_file() or (folder / TRIALS).is_file()


def read_sweep(folder: Path) -> SweepRecord:
    """Everything that a report needs.

    Raises:
        UserError: not a sweep's folder, or its list of trials is damaged.
    """
    if not is_sweep(folder):
        raise UserError(f"{folder}: not the folder of a sweep: it has neither {CONFIG} nor {TRIALS}")
    notes: list[str] = []
    plan = SweepFolder(folder).read_plan()
    return SweepRecord(
        folder=folder.resolve(),
        config=_read_object(folder / CONFIG, lambda text: yaml.safe_load(unseal_yaml(text)), notes),
        config_text=_read_text(folder / CONFIG, []),
        versions=_read_object(folder / VERSIONS, lambda text: json.loads(unseal(text)), notes),
        plan=plan,
        trials=[_read_trial(folder, trial, notes) for trial in plan.trials],
        notes=notes,
    )


def read_steps(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl`` with the amounts used until each, 0 where the run did not count them.

    Args:
        path: of the file; absent means no step. A last line that is still being written is left out.
        notes: takes a line about damaged lines.
    """
    steps: dict[int, dict[str, Any]] = {}
    try:
        lines, damaged = read_steps_of(path)
    except UserError as error:
        notes.append(str(error))
        return []
    for record in lines:
        used = {name: float(record.get(f"{METRIC_PREFIX}{name}") or 0) for name in AMOUNTS}
        steps[record["step"]] = record | used | {"steps": float(record["step"])}
    if damaged:
        notes.append(f"{path}: damaged lines left out: {damaged}")
    return [steps[step] for step in sorted(steps)]


def _read_trial(folder: Path, trial: Trial, notes: list[str]) -> TrialRecord:
    run = folder / "trials" / trial.id
    if not run.is_dir() and trial.state not in ("pending", "failed"):
        notes.append(f"{run}: the folder of this {trial.state} trial is missing")
    comparison = None
    if os.path.lexists(run / "evaluation.json"):
        try:
            comparison = EvaluationComparison.load(run / "evaluation.json")
        except UserError as error:
            notes.append(str(error))
    before = len(notes)
    steps = read_steps(run / "metrics.jsonl", notes)
    if len(notes) == before:
        notes += filter(None, [missing_steps(RunFolder(run))])
    return TrialRecord(trial, steps, comparison, _read_text(run / "config.yaml", notes))


def _read_object(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    try:
        tree = parse(_read_text(path, notes) or "{}")
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{path}: cannot be read: {brief(error)}")
        return {}
    if not isinstance(tree, dict):
        notes.append(f"{path}: cannot be read: expected a mapping, found {type(tree).__name__}")
        return {}
    return tree


def _read_text(path: Path, notes: list[str]) -> str:
    try:
        return read_file(path).decode("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        notes.append(f"{path}: cannot be read: {brief(error)}")
        return ""
