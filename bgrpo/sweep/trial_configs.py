"""From a sweep's configuration to the training configuration of one trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bgrpo.config import TrainConfig, build_config, drop_foreign_options, load_config
from bgrpo.errors import UserError
from bgrpo.runs.mlflow_tracking import tracking_uri
from bgrpo.runs.run_folder import flatten
from bgrpo.sweep.config_keys import flat_keys, merge, nest
from bgrpo.sweep.search_space import Point, corner_points, known_points
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_metric import check_metric
from bgrpo.sweep.sweep_plan import Phase, Trial

STEPS_PER_SECOND = 1000  # no training step is shorter than this allows


class TrialConfigs:
    """Makes the training configurations of a sweep's trials.

    Args:
        sweep: what was asked for.
        trials_dir: folder of the trials' run folders.

    Raises:
        UserError: the training configuration that trials start from cannot be read.
    """

    def __init__(self, sweep: SweepConfig, trials_dir: Path) -> None:
        self._sweep = sweep
        self._dir = trials_dir
        self._base = _load_base(sweep)

    def of(self, trial: Trial) -> TrainConfig:
        """The trial's whole configuration."""
        return self._build(trial.overrides, trial.phase, trial.seed, trial.id, f"trial {trial.id}")

    def check(self) -> list[TrainConfig]:
        """Build every configuration that the sweep may come to, and refuse a sweep that could not compare them.

        Returns:
            One confirm configuration per arm.

        Raises:
            UserError: a configuration that does not fit, with the arm and the point.
        """
        sweep, first = self._sweep, []
        every: dict[str, TrainConfig] = {}
        for arm, entry in sweep.arms.items():
            space = sweep.space_of(arm)
            known = known_points(sweep, arm) if space and sweep.searcher != "optuna" else corner_points(space)
            for point in known or [{}]:
                where = ", ".join([f"arm {arm}", *(f"{key}={value}" for key, value in point.items())])
                config = self._build(flat_keys(entry.set) | point, "confirm", sweep.seed, "check", where)
                every[where] = config
                if point is (known or [point])[0]:
                    first.append(config)
        if sweep.has_search and not first[0].evaluation.every:
            raise UserError("a search needs validations to select by: set train.evaluation.every, for example 20")
        check_metric(sweep.metric, every, sweep.has_search)
        return first

    def _build(self, overrides: Point, phase: Phase, seed: int, name: str, where: str) -> TrainConfig:
        tree = merge(self._base, nest(overrides))
        tree = merge(tree, {"seed": seed, "run": {"dir": str(self._dir), "name": name}})
        tree["evaluation"]["final"] = phase == "confirm"
        tree["tracking"] = self._tracking()
        tree["steps"], tree["epochs"], tree["budget"] = 1, None, {}
        limits = self._limits(build_config(TrainConfig, tree, where))
        return build_config(TrainConfig, merge(tree, limits), where)

    def _tracking(self) -> dict[str, Any]:
        """All trials record where the sweep does."""
        section = self._sweep.tracking
        uri = tracking_uri(section, self._sweep.run.dir) if section.enabled else section.uri
        return section.model_dump(mode="json") | {"uri": uri}

    def _limits(self, config: TrainConfig) -> dict[str, Any]:
        """``steps`` and ``budget``; steps are more than enough where the budget counts something else."""
        kind, amount = self._sweep.budget.kind, self._sweep.budget.amount
        if kind == "seconds":
            return {"steps": math.ceil(amount * STEPS_PER_SECOND), "budget": {"seconds": amount}}
        if kind in ("completions", "tokens"):  # a prompt gives at least one completion of one token
            return {"steps": math.ceil(amount / config.rollout.prompts_per_step), "budget": {kind: int(amount)}}
        steps, rest = divmod(int(amount), config.optimizer_steps_per_step)
        if rest or not steps:
            raise UserError(
                f"budget: {amount:g} gradient steps do not divide into training steps of learner.num_iterations="
                f"{config.learner.num_iterations} × learner.minibatches={config.learner.minibatches} = "
                f"{config.optimizer_steps_per_step} gradient steps each: give a multiple"
            )
        return {"steps": steps}


def _load_base(sweep: SweepConfig) -> dict[str, Any]:
    """The training configuration that all trials share, as a plain tree, not yet validated.

    Raises:
        UserError: ``base`` cannot be read.
    """
    try:
        tree = load_config(TrainConfig, sweep.base).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"base={sweep.base}: {error}") from None
    over = nest(sweep.train)
    name = flatten(over).get("task.name")
    if isinstance(name, str):
        drop_foreign_options(tree["task"], name, f"base={sweep.base}")
    return merge(tree, over)
