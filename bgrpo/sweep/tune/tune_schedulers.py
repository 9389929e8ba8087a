"""Which search trials Ray Tune cuts: its own schedulers, one for each arm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.tune.tune_trial import PERCENT, SCORE

MAX_PERCENT = 101  # a trial that has spent its budget is never cut


class SearchScheduler(FIFOScheduler):
    """Applies one scheduler per arm, to search trials only: arms compete in the report, not for survival.

    Args:
        make: makes the scheduler of an arm.
        arm_of: arm of a search trial by its id; None for a confirm trial, which is never cut.
    """

    def __init__(self, make: Callable[[], TrialScheduler], arm_of: Callable[[str], str | None]) -> None:
        super().__init__()
        self._make = make
        self._arm_of = arm_of
        self._schedulers: dict[str | None, TrialScheduler] = {None: FIFOScheduler()}

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

    def _of(self, trial: Any) -> TrialScheduler:
        arm = self._arm_of(trial.config["job"].trial)
        if arm not in self._schedulers:
            self._schedulers[arm] = self._make()
        return self._schedulers[arm]


def make_scheduler(sweep: SweepConfig, arm_of: Callable[[str], str | None]) -> TrialScheduler:
    """Tune's scheduler for a sweep; budgets are counted in percent, whatever they are given in."""
    common: dict[str, Any] = {"time_attr": PERCENT, "metric": SCORE, "mode": "max"}
    common["grace_period"] = max(1, round(100 * sweep.grace))
    if sweep.scheduler == "asha":
        asha = common | {"max_t": MAX_PERCENT, "reduction_factor": sweep.reduction_factor}
        return SearchScheduler(lambda: AsyncHyperBandScheduler(**asha), arm_of)
    if sweep.scheduler == "median":  # endless: trials are never paused
        return SearchScheduler(lambda: MedianStoppingRule(min_time_slice=math.inf, **common), arm_of)  # type: ignore[arg-type]
    return FIFOScheduler()
