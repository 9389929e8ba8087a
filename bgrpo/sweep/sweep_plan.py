"""Which trials a sweep has, which of them comes next, and which point of each arm is best. No clock, no files, no Ray.

A trial is ``pending``, ``running``, or has ended: ``finished``, ``failed``, or ``stopped`` (cut by the scheduler). An
interrupted one is pending again and goes on from its checkpoint. Each arm has its search trials first; once all of
them have ended, its best point is confirmed with fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from bgrpo.sweep.config_keys import flat_keys
from bgrpo.sweep.search_space import Point, Tried, next_point, number_of_points
from bgrpo.sweep.sweep_config import SweepConfig

Phase = Literal["search", "confirm"]
State = Literal["pending", "running", "finished", "failed", "stopped"]
EndState = Literal["finished", "failed", "stopped"]
ENDED = ("finished", "failed", "stopped")
LENIENT = ConfigDict(extra="ignore")  # a folder of another version may hold more


@dataclass(config=LENIENT)
class Trial:
    """One training run of a sweep, as ``trials.json`` keeps it. Times are seconds since 1970."""

    id: Annotated[str, Field(pattern=r"^[^/\\]*[^./\\][^/\\]*$")]  # names its folder
    algorithm: str  # name of the arm
    phase: Phase
    point: int | None  # its number in the arm's search; None without a search
    seed: int
    overrides: Point  # the arm's and the point's keys, dotted
    state: State = "pending"
    reason: str = ""  # why it failed or was cut
    value: float | None = None  # last value of the metric that selects, on the validation problems
    started: float | None = None  # first start
    since: float | None = None  # start of the present or last attempt
    ended: float | None = None
    attempts: int = 0
    seconds: float = 0.0  # that it ran, over all attempts
    cpu_seconds: float = 0.0  # CPUs that it reserved, times seconds
    gpu_seconds: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)  # CPU and GPU that it reserves
    diverged: bool = False  # failed because its training diverged, which it would do again


@dataclass(config=LENIENT)
class SavedPlan:
    """What ``trials.json`` holds."""

    state: str = "unknown"  # of the sweep
    total: int = 0  # trials of the whole sweep
    mlflow_run_id: str | None = None
    selection: dict[str, dict[str, Any]] = field(default_factory=dict)  # see Plan.selection
    trials: list[Trial] = field(default_factory=list)


class Plan:
    """The state machine of a sweep.

    Args:
        sweep: what was asked for.
        trials: of a sweep that goes on; running ones are taken for interrupted.
    """

    def __init__(self, sweep: SweepConfig, trials: Sequence[Trial] = ()) -> None:
        self._sweep = sweep
        self._points = number_of_points(sweep)
        self.trials = list(trials)
        for trial in self.running:
            trial.state = "pending"
        while sweep.searcher != "optuna" and self._ask():
            pass  # points that do not depend on results are planned at once
        self._extend()

    @property
    def total(self) -> int:
        """Trials of the whole sweep, those that are still to be planned included."""
        sweep = self._sweep
        per_arm = self._points * len(sweep.searched_seeds) + sweep.confirm_seeds
        lost = sum(self._is_searched(arm) and self._best_point(arm) is None for arm in sweep.arms)
        return per_arm * len(sweep.arms) - lost * sweep.confirm_seeds

    @property
    def is_done(self) -> bool:
        """True when every trial has ended and none is to come."""
        return len(self.trials) == self.total and all(trial.state in ENDED for trial in self.trials)

    @property
    def running(self) -> list[Trial]:
        """Trials that run now."""
        return [trial for trial in self.trials if trial.state == "running"]

    def trial(self, name: str) -> Trial:
        """The trial of that id."""
        return next(trial for trial in self.trials if trial.id == name)

    def next_trial(self) -> Trial | None:
        """The trial to start next, interrupted ones first; None when all that are known run or have ended."""
        pending = [trial for trial in self.trials if trial.state == "pending"]
        if not any(trial.phase == "search" for trial in pending):
            pending += self._ask()
        return min(pending, key=lambda trial: not trial.attempts, default=None)

    def start(self, trial: Trial, now: float) -> None:
        """The trial begins, or goes on."""
        _expect(trial, "pending")
        trial.state, trial.attempts = "running", trial.attempts + 1
        trial.since = now
        trial.started = now if trial.started is None else trial.started

    def end(
        self, trial: Trial, state: EndState, now: float, value: float | None, reason: str, diverged: bool = False
    ) -> None:
        """The trial has ended."""
        _expect(trial, "running")
        trial.state, trial.ended, trial.reason, trial.diverged = state, now, reason, diverged
        charge(trial, now)
        trial.value = value if value is not None and math.isfinite(value) else None
        self._extend()

    def interrupt(self, trial: Trial, now: float) -> None:
        """The trial was stopped with a checkpoint and is to go on later."""
        _expect(trial, "running")
        trial.state = "pending"
        charge(trial, now)

    def selection(self) -> dict[str, dict[str, Any]]:
        """Arm -> its best point: the trial that did best with it, the metric, its mean over seeds, and the point."""
        chosen: dict[str, dict[str, Any]] = {}
        for arm in self._sweep.arms:
            point = self._best_point(arm) if self._is_searched(arm) else None
            if point is not None:
                values = _finished_values(self._search_of(arm)[point])
                best = max(values, key=lambda name: values[name])
                chosen[arm] = {
                    "trial": best,
                    "point": point,
                    "metric": self._sweep.metric,
                    "value": mean(values.values()),
                    "overrides": self.trial(best).overrides,
                }
        return chosen

    def _ask(self) -> list[Trial]:
        """The next point of the arm that has the fewest; none when each arm has all."""
        searches = {arm: self._search_of(arm) for arm in self._sweep.arms}
        arm = min(searches, key=lambda name: len(searches[name]))
        point = len(searches[arm])
        if point >= self._points:
            return []
        tried = [_tried(trials) for _, trials in sorted(searches[arm].items())]
        overrides = flat_keys(self._sweep.arms[arm].set) | next_point(self._sweep, arm, tried)
        made = [self._make(arm, "search", point, seed, overrides) for seed in self._sweep.searched_seeds]
        self.trials += made
        return made

    def _extend(self) -> None:
        """Add the confirm trials of arms whose search is over."""
        confirmed = {trial.algorithm for trial in self.trials if trial.phase == "confirm"}
        for arm in self._sweep.arms:
            if arm in confirmed or (self._points and not self._is_searched(arm)):
                continue
            point = self._best_point(arm)
            if point is not None or not self._points:
                alone = flat_keys(self._sweep.arms[arm].set)
                overrides = alone if point is None else self._search_of(arm)[point][0].overrides
                seeds = self._sweep.confirmed_seeds
                self.trials += [self._make(arm, "confirm", point, seed, overrides) for seed in seeds]

    def _make(self, arm: str, phase: Phase, point: int | None, seed: int, overrides: Mapping[str, Any]) -> Trial:
        name = f"{arm}-{phase}-seed{seed}" if phase == "confirm" else f"{arm}-{phase}-{point:02d}-seed{seed}"
        return Trial(name, arm, phase, point, seed, dict(overrides))

    def _search_of(self, arm: str) -> dict[int, list[Trial]]:
        """Point -> its search trials."""
        points: dict[int, list[Trial]] = {}
        for trial in self.trials:
            if trial.algorithm == arm and trial.phase == "search" and trial.point is not None:
                points.setdefault(trial.point, []).append(trial)
        return points

    def _is_searched(self, arm: str) -> bool:
        """True when the arm had a search and all of it has ended."""
        trials = [trial for trials in self._search_of(arm).values() for trial in trials]
        expected = self._points * len(self._sweep.searched_seeds)
        return 0 < expected == len(trials) and all(trial.state in ENDED for trial in trials)

    def _best_point(self, arm: str) -> int | None:
        """The point that most seeds finished; of these, the one with the highest mean; of equals, the first."""
        found = {point: _finished_values(trials) for point, trials in self._search_of(arm).items()}
        scores = [(len(values), mean(values.values()), -point) for point, values in found.items() if values]
        return -max(scores)[2] if scores else None


def charge(trial: Trial, until: float) -> None:
    """Add the present attempt, which ended ``until`` (seconds since 1970), to what the trial cost."""
    seconds = max(0.0, until - trial.since) if trial.since is not None else 0.0
    trial.seconds += seconds
    trial.cpu_seconds += seconds * trial.resources.get("CPU", 0.0)
    trial.gpu_seconds += seconds * trial.resources.get("GPU", 0.0)


def retry_failed(trials: Sequence[Trial]) -> list[str]:
    """Make failed trials pending, so that they go on from their checkpoints, where that may end otherwise.

    A diverged trial stays as it is: it would diverge again. So does a search trial of an arm whose best point is being
    confirmed: a better one, found late, would not be the one that was confirmed.

    Returns:
        One line for each that stays failed: why.
    """
    confirmed = {trial.algorithm for trial in trials if trial.phase == "confirm"}
    kept = []
    for trial in (trial for trial in trials if trial.state == "failed"):
        if trial.diverged:
            kept.append(f"{trial.id} stays failed: it diverged, and would again")
        elif trial.phase == "search" and trial.algorithm in confirmed:
            kept.append(f"{trial.id} stays failed: what is best of {trial.algorithm} was settled without it")
        else:
            trial.state, trial.reason, trial.ended, trial.value = "pending", "", None, None
    return kept


def _expect(trial: Trial, state: State) -> None:
    if trial.state != state:
        raise RuntimeError(f"trial {trial.id} is {trial.state}, expected {state}")


def _finished_values(trials: Sequence[Trial]) -> dict[str, float]:
    """Trial -> value, of those that were neither cut nor failed."""
    return {trial.id: trial.value for trial in trials if trial.state == "finished" and trial.value is not None}


def _tried(trials: Sequence[Trial]) -> Tried:
    """What a searcher is told of a point: the mean of its trials, those that were cut included."""
    values = [trial.value for trial in trials if trial.state != "failed" and trial.value is not None]
    is_over = all(trial.state in ENDED for trial in trials)
    return Tried(trials[0].overrides, is_over, mean(values) if values and is_over else None)
