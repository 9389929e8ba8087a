"""What Ray Tune asks while a sweep runs: which trial comes next, and which one is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from bgrpo.sweep.config import SweepConfig
from bgrpo.sweep.tune.trial import PERCENT, SCORE, TrialJob

MAX_PERCENT = 101  # a trial that has spent its budget is never cut


class Dispatcher(Protocol):
    """Who knows the plan."""

    def next_job(self) -> TrialJob | None:
        """The trial to start now; None when none is pending or has room."""

    def trial_ended(self, trial: str, result: dict[str, Any] | None) -> None:
        """A trial has ended; ``result`` is its last one, None when its process was lost too often."""

    def arm_searched_by(self, trial: str) -> str | None:
        """The arm that competes in a search trial; None for a confirm trial."""

    @property
    def is_over(self) -> bool:
        """True when no trial is to be started any more."""


class PlanSearcher(Searcher):
    """Hands the plan's trials to Tune, whenever there is room for one more.

    Args:
        dispatcher: who knows the plan.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._trials: dict[str, str] = {}  # Tune's id -> ours

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None to be asked again."""
        if self._dispatcher.is_over:
            return Searcher.FINISHED
        job = self._dispatcher.next_job()
        if job is None:
            return None
        self._trials[trial_id] = job.trial
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how it ended."""
        self._dispatcher.trial_ended(self._trials.pop(trial_id), None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the plan is kept in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`save`."""


class SearchScheduler(FIFOScheduler):
    """Applies one scheduler per arm, to search trials only: arms compete in the report, not for survival.

    Args:
        make: makes the scheduler of an arm.
        group_of: arm of a search trial by its id; None for a confirm trial, which is never cut.
    """

    def __init__(self, make: Callable[[], TrialScheduler], group_of: Callable[[str], str | None]) -> None:
        super().__init__()
        self._make = make
        self._group_of = group_of
        self._schedulers: dict[str, TrialScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if SCORE in result:  # without one, the schedulers have nothing to compare
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        return "; ".join(f"{arm}: {scheduler.debug_string()}" for arm, scheduler in self._schedulers.items())

    def _of(self, trial: Any) -> TrialScheduler:
        group = self._group_of(trial.config["job"].trial)
        if group is None:
            return FIFOScheduler()
        if group not in self._schedulers:
            self._schedulers[group] = self._make()
        return self._schedulers[group]


def make_scheduler(sweep: SweepConfig, group_of: Callable[[str], str | None]) -> TrialScheduler:
    """Tune's scheduler for a sweep; budgets are counted in percent, whatever they are given in."""
    grace = max(1, round(100 * sweep.grace))
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "asha":
        return SearchScheduler(
            lambda: AsyncHyperBandScheduler(
                time_attr=PERCENT,
                metric=SCORE,
                mode="max",
                max_t=MAX_PERCENT,
                grace_period=grace,
                reduction_factor=sweep.reduction_factor,
            ),
            group_of,
        )
    return SearchScheduler(
        lambda: MedianStoppingRule(
            time_attr=PERCENT,
            metric=SCORE,
            mode="max",
            grace_period=grace,
            min_time_slice=math.inf,  # type: ignore[arg-type]  # trials are never paused
        ),
        group_of,
    )
