"""A sweep's folder as its report reads it: whatever of each trial is there, while the sweep runs or long after.

Nothing here fails over one trial: what is missing or damaged is left out and named in ``notes``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.runs.budget import METRIC_PREFIX

AMOUNTS = ("steps", "gradient_steps", "completions", "tokens", "seconds")
"""What a run may have used: see :class:`bgrpo.runs.budget.Spent`, which counts them."""

SWEEP_CONFIG, TRIALS, VERSIONS = "sweep.yaml", "trials.json", "versions.json"
CONFIRM, SEARCH = "confirm", "search"
DEFAULT_METRIC = "beam_rank_score"


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what the sweep says of it, and what its run folder holds.

    Attributes:
        id: name of the trial and of its folder.
        arm: the algorithm under comparison.
        phase: ``search`` or ``confirm``.
        seed: of the run; arms are paired by it.
        state: pending, running, finished, failed or stopped (cut by the scheduler).
        reason: why it failed or was stopped.
        overrides: what sets it apart, dotted keys.
        point: number of the point in the arm's search; None without a search.
        value: last value of the validation metric that selects, as the sweep noted it.
        attempts: times it was started.
        cpu_hours: cores that it reserved, times hours; None when unknown.
        gpu_hours: the same for GPUs.
        steps: one mapping per training step, with the amounts used until then (:data:`AMOUNTS`).
        comparison: before and after on the test problems; None until the run has it.
        config_text: the run's configuration as it stands in its folder.
    """

    id: str
    arm: str
    phase: str
    seed: int
    state: str
    reason: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    point: int | None = None
    value: float | None = None
    attempts: int = 0
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    comparison: EvaluationComparison | None = None
    config_text: str = ""

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
    """A sweep.

    Attributes:
        folder: where it lies.
        config: what it was asked for.
        config_text: the same as it stands in the folder.
        versions: of packages, and the machine.
        state: of the whole sweep.
        trials: in the order of the plan.
        selection: arm -> the ``point`` that won its search, its ``trial``, ``metric`` and ``value``.
        notes: what could not be read.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    state: str
    trials: list[TrialRecord]
    selection: dict[str, dict[str, Any]]
    notes: list[str]

    @property
    def name(self) -> str:
        """Name of the sweep: of its folder."""
        return self.folder.name

    @cached_property
    def arms(self) -> list[str]:
        """Names of the arms in the order of the plan."""
        return list(dict.fromkeys(trial.arm for trial in self.trials))

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with: ``baseline`` of the configuration, else GRPO, else the first."""
        named = self.config.get("baseline")
        if named in self.arms:
            return str(named)
        return next((arm for arm in self.arms if self._algorithm(arm) == "grpo"), next(iter(self.arms), None))

    @property
    def metric(self) -> str:
        """The metric that decides on test problems: the one by which the sweep selects on validation problems."""
        return str(self.config.get("metric") or DEFAULT_METRIC)

    def of(self, arm: str, phase: str) -> list[TrialRecord]:
        """The trials of an arm in one phase."""
        return [trial for trial in self.trials if trial.arm == arm and trial.phase == phase]

    def evaluated(self, arm: str) -> dict[int, EvaluationComparison]:
        """Seed -> before and after on the test problems, of the arm's finished confirm trials, by seed."""
        done = {trial.seed: trial.comparison for trial in self.of(arm, CONFIRM) if trial.comparison is not None}
        return {seed: done[seed] for seed in sorted(done)}

    def _algorithm(self, arm: str) -> str:
        arms = self.config.get("arms") or {}
        return str(((arms.get(arm) or {}).get("set") or {}).get("algorithm", arm))


def is_sweep(folder: Path) -> bool:
    """Is this the folder of a sweep?"""
    return (folder / SWEEP_CONFIG).is_file() or (folder / TRIALS).is_file()


def read_sweep(folder: Path) -> SweepRecord:
    """Everything that a report needs.

    Raises:
        UserError: not a sweep's folder, or its list of trials is damaged.
    """
    if not is_sweep(folder):
        raise UserError(f"{folder}: not the folder of a sweep: it has neither {SWEEP_CONFIG} nor {TRIALS}")
    notes: list[str] = []
    config_text = _read_text(folder / SWEEP_CONFIG)
    plan = _read_plan(folder / TRIALS)
    trials = [_read_trial(folder, entry, notes) for entry in plan.get("trials", [])]
    return SweepRecord(
        folder=folder.resolve(),
        config=_parse_yaml(config_text, folder / SWEEP_CONFIG, notes),
        config_text=config_text,
        versions=_read_object(folder / VERSIONS, notes),
        state=str(plan.get("state") or "unknown"),
        trials=trials,
        selection=plan.get("selection") or {},
        notes=notes,
    )


def read_steps(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl`` with the amounts used until each; a last line still being written is left out.

    Args:
        path: of the file; absent means no step.
        notes: takes a line about damaged lines.
    """
    steps: dict[int, dict[str, Any]] = {}
    damaged = 0
    for line in _read_text(path).split("\n")[:-1]:
        try:
            record = json.loads(line)
            steps[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        notes.append(f"{path}: damaged lines left out: {damaged}")
    return _with_amounts([steps[step] for step in sorted(steps)])


def _with_amounts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Amounts as the run counted them; 0 where it did not."""
    names = {name: f"{METRIC_PREFIX}{name}" for name in AMOUNTS}
    return [
        record | {name: float(record.get(key) or 0) for name, key in names.items()} | {"steps": float(record["step"])}
        for record in records
    ]


def _read_plan(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    trials = plan.get("trials", []) if isinstance(plan, dict) else None
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise UserError(f"{path}: expected an object with a list of trials")
    return plan


def _read_trial(folder: Path, entry: Mapping[str, Any], notes: list[str]) -> TrialRecord:
    name = str(entry.get("id") or "")
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"{folder / TRIALS}: trial id {name!r} is not the name of a folder")
    run = folder / "trials" / name
    state = str(entry.get("state") or "pending")
    if not run.is_dir() and state not in ("pending", "failed"):
        notes.append(f"{run}: the folder of this {state} trial is missing")
    return TrialRecord(
        id=name,
        arm=str(entry.get("algorithm")),
        phase=str(entry.get("phase") or CONFIRM),
        seed=int(entry.get("seed") or 0),
        state=state,
        reason=str(entry.get("reason") or ""),
        overrides=dict(entry.get("overrides") or {}),
        point=entry.get("point"),
        value=entry.get("value"),
        attempts=int(entry.get("attempts") or 0),
        cpu_hours=_hours(entry.get("cpu_seconds")),
        gpu_hours=_hours(entry.get("gpu_seconds")),
        steps=read_steps(run / "metrics.jsonl", notes),
        comparison=_read_comparison(run / "evaluation.json", notes),
        config_text=_read_text(run / "config.yaml"),
    )


def _hours(seconds: Any) -> float | None:
    return None if seconds is None else float(seconds) / 3600


def _read_comparison(path: Path, notes: list[str]) -> EvaluationComparison | None:
    if not path.is_file():
        return None
    try:
        return EvaluationComparison.load(path)
    except UserError as error:
        notes.append(str(error))
        return None


def evaluation_digests(sweep: SweepRecord) -> set[str]:
    """Names of the sets of problems that trials were tested on; more than one means that they cannot be compared."""
    return {_digest(comparison.after) for arm in sweep.arms for comparison in sweep.evaluated(arm).values()}


def _digest(evaluation: Evaluation) -> str:
    return f"{evaluation.digest}/{len(evaluation.categories)}"


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _read_text(path)
    if not text:
        return {}
    try:
        tree = json.loads(text)
    except ValueError as error:
        notes.append(f"{path}: cannot be read as JSON: {error}")
        return {}
    return tree if isinstance(tree, dict) else {"versions": tree}


def _parse_yaml(text: str, path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}")
        return {}
    return tree if isinstance(tree, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
