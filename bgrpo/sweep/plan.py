"""Which trials a sweep has, which of them comes next, and which point of each arm is best. No clock, no files, no Ray.

A trial is ``pending``, ``running``, or has ended: ``finished``, ``failed``, or ``stopped`` (cut by the scheduler). An
interrupted one is pending again and goes on from its checkpoint. Each arm has its search trials first; once all of
them have ended, its best point is confirmed with fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any, Literal

from bgrpo.sweep.config import SweepConfig
from bgrpo.sweep.keys import flat_keys
from bgrpo.sweep.space import Point, PointSource, number_of_points

Phase = Literal["search", "confirm"]
State = Literal["pending", "running", "finished", "failed", "stopped"]
EndState = Literal["finished", "failed", "stopped"]
ENDED = ("finished", "failed", "stopped")


@dataclass(slots=True)
class Trial:
    """One training run of a sweep.

    Attributes:
        id: names the trial and its folder.
        algorithm: name of the arm.
        phase: ``search`` or ``confirm``.
        point: number of the point in the arm's search; None without a search.
        seed: of the run.
        overrides: the arm's and the point's keys, dotted.
        state: see the module.
        reason: why it failed or was cut.
        diverged: it failed because its training diverged, which it would do again.
        value: the last value of the metric that selects, on the validation problems.
        started: seconds since 1970 of the first start.
        since: seconds since 1970 of the start of the present or last attempt.
        ended: seconds since 1970.
        attempts: times it was started.
        seconds: that it ran, over all attempts.
        cpu_seconds: CPUs that it reserved, times ``seconds``.
        gpu_seconds: GPUs that it reserved, times ``seconds``.
        resources: what it reserves, ``CPU`` and ``GPU``.
    """

    id: str
    algorithm: str
    phase: Phase
    point: int | None
    seed: int
    overrides: Point
    state: State = "pending"
    reason: str = ""
    value: float | None = None
    started: float | None = None
    since: float | None = None
    ended: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    diverged: bool = False


class Plan:
    """The state machine of a sweep.

    Args:
        sweep: what was asked for.
        sources: makes an arm's source of points, told how many of its points are known already.
        trials: of a sweep that goes on; running ones are taken for interrupted.
    """

    def __init__(
        self, sweep: SweepConfig, sources: Callable[[str, int], PointSource], trials: Sequence[Trial] = ()
    ) -> None:
        self._sweep = sweep
        self._points = number_of_points(sweep)
        self.trials = list(trials)
        for trial in self.trials:
            if trial.state == "running":
                trial.state = "pending"
        self._sources = {arm: sources(arm, len(self._known_points(arm))) for arm in sweep.arms}
        for arm in sweep.arms:
            for point in self._known_points(arm):
                self._tell(arm, point)
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
        self._expect(trial, "pending")
        trial.state, trial.attempts = "running", trial.attempts + 1
        trial.since = now
        trial.started = now if trial.started is None else trial.started

    def end(
        self,
        trial: Trial,
        state: Literal["finished", "failed", "stopped"],
        now: float,
        value: float | None,
        reason: str,
        diverged: bool = False,
    ) -> None:
        """The trial has ended."""
        self._expect(trial, "running")
        trial.state, trial.ended, trial.reason, trial.diverged = state, now, reason, diverged
        charge(trial, now)
        trial.value = value if value is not None and math.isfinite(value) else None
        if trial.phase == "search" and trial.point is not None:
            self._tell(trial.algorithm, trial.point)
        self._extend()

    def interrupt(self, trial: Trial, now: float) -> None:
        """The trial was stopped with a checkpoint and is to go on later."""
        self._expect(trial, "running")
        trial.state = "pending"
        charge(trial, now)

    def selection(self) -> dict[str, dict[str, Any]]:
        """Arm -> its best point: the trial that did best with it, the metric, its mean over seeds, and the point."""
        chosen: dict[str, dict[str, Any]] = {}
        for arm in self._sweep.arms:
            point = self._best_point(arm) if self._is_searched(arm) else None
            if point is not None:
                values = self._finished_values(arm, point)
                best = max(values, key=lambda name: values[name])
                chosen[arm] = {
                    "trial": best,
                    "point": point,
                    "metric": self._sweep.metric,
                    "value": mean(values.values()),
                    "overrides": self.trial(best).overrides,
                }
        return chosen

    def to_json(self) -> list[dict[str, Any]]:
        """The trials as they are kept in a file, see :func:`trials_from_json`."""
        return [asdict(trial) for trial in self.trials]

    def _ask(self) -> list[Trial]:
        """The next point of the arm that has the fewest."""
        arms = [arm for arm in self._sweep.arms if len(self._known_points(arm)) < self._points]
        if not arms:
            return []
        arm = min(arms, key=lambda name: len(self._known_points(name)))
        point = len(self._known_points(arm))
        overrides = flat_keys(self._sweep.arms[arm].set) | self._sources[arm].ask(point)
        made = [self._make(arm, "search", point, seed, overrides) for seed in self._sweep.searched_seeds]
        self.trials += made
        return made

    def _extend(self) -> None:
        """Add the confirm trials of arms whose search is over."""
        for arm in self._sweep.arms:
            if self._trials_of(arm, phase="confirm") or (self._points and not self._is_searched(arm)):
                continue
            point = self._best_point(arm)
            if point is not None or not self._points:
                alone = flat_keys(self._sweep.arms[arm].set)
                overrides = alone if point is None else self._trials_of(arm, point)[0].overrides
                seeds = self._sweep.confirmed_seeds
                self.trials += [self._make(arm, "confirm", point, seed, overrides) for seed in seeds]

    def _make(self, arm: str, phase: Phase, point: int | None, seed: int, overrides: Mapping[str, Any]) -> Trial:
        name = f"{arm}-{phase}-seed{seed}" if phase == "confirm" else f"{arm}-{phase}-{point:02d}-seed{seed}"
        return Trial(name, arm, phase, point, seed, dict(overrides))

    def _known_points(self, arm: str) -> list[int]:
        of_arm = self._trials_of(arm, phase="search")
        return sorted({trial.point for trial in of_arm if trial.point is not None})

    def _trials_of(self, arm: str, point: int | None = None, phase: Phase = "search") -> list[Trial]:
        return [
            trial
            for trial in self.trials
            if trial.algorithm == arm and trial.phase == phase and (point is None or trial.point == point)
        ]

    def _is_searched(self, arm: str) -> bool:
        """True when the arm had a search and all of it has ended."""
        trials = self._trials_of(arm)
        expected = self._points * len(self._sweep.searched_seeds)
        return 0 < expected == len(trials) and all(trial.state in ENDED for trial in trials)

    def _best_point(self, arm: str) -> int | None:
        """The point that most seeds finished; of these, the one with the highest mean; of equals, the first."""
        scores = []
        for point in self._known_points(arm):
            values = self._finished_values(arm, point)
            if values:
                scores.append((len(values), mean(values.values()), -point))
        return -max(scores)[2] if scores else None

    def _finished_values(self, arm: str, point: int) -> dict[str, float]:
        """Trial -> value, of the point's trials that were neither cut nor failed."""
        trials = self._trials_of(arm, point)
        return {trial.id: trial.value for trial in trials if trial.state == "finished" and trial.value is not None}

    def _tell(self, arm: str, point: int) -> None:
        """Tell the source about a point all of whose trials have ended."""
        trials = self._trials_of(arm, point)
        if any(trial.state not in ENDED for trial in trials):
            return
        values = [trial.value for trial in trials if trial.state != "failed" and trial.value is not None]
        self._sources[arm].tell(point, trials[0].overrides, mean(values) if values else None)

    @staticmethod
    def _expect(trial: Trial, state: State) -> None:
        if trial.state != state:
            raise RuntimeError(f"trial {trial.id} is {trial.state}, expected {state}")


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
    for trial in trials:
        if trial.state != "failed":
            continue
        if trial.diverged:
            kept.append(f"{trial.id} stays failed: it diverged, and would again")
        elif trial.phase == "search" and trial.algorithm in confirmed:
            kept.append(f"{trial.id} stays failed: what is best of {trial.algorithm} was settled without it")
        else:
            trial.state, trial.reason, trial.ended, trial.value = "pending", "", None, None
    return kept


def trials_from_json(entries: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """What :meth:`Plan.to_json` gave."""
    return [Trial(**entry) for entry in entries]
