"""Running a plan's trials on Ray Tune."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ray import tune

from bgrpo.errors import RunError
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.tune.tune_schedulers import make_scheduler
from bgrpo.sweep.tune.tune_searcher import PlanSearcher
from bgrpo.sweep.tune.tune_trial import PROCESS_LOSSES, SweepTrial

ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.0001}
"""What a trial's own process reserves: it only waits, beside the driver; its learners and actors reserve their own."""

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs keep their own records
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a configuration hold in trials too
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: nothing is printed
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the plan is in the sweep's folder
}


def run_on_tune(
    sweep: SweepConfig,
    searcher: PlanSearcher,
    storage: Path | str,
    trainable: type[tune.Trainable] = SweepTrial,
) -> None:
    """Run what ``searcher`` hands out until it is over and every trial has ended, or it is abandoned.

    Args:
        sweep: says which scheduler cuts trials.
        searcher: keeps the plan.
        storage: folder for Tune's own files, of no use afterwards.
        trainable: of the trials; gets its :class:`bgrpo.sweep.tune.tune_trial.TrialJob` as ``config["job"]``.
    """
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tune.Tuner(
        tune.with_resources(trainable, ON_HEAD),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(sweep, searcher.arm_searched_by),
            num_samples=-1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_End(searcher)],
            failure_config=tune.FailureConfig(max_failures=PROCESS_LOSSES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the runs have their own
        ),
    ).fit()


class _End(tune.Callback):
    """Ends Tune's loop where it is, which ends what it has started."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self._searcher = searcher

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._searcher.abandoned:
            raise RunError("the sweep was stopped")


def _trial_name(trial: Any) -> str:
    return trial.config["job"].trial
