"""The configuration of a sweep: arms, what is searched for each of them, the common budget, the seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bgrpo.config import RunSection, TrackingSection, TrainConfig
from bgrpo.settings.messages import shown, unknown_key
from bgrpo.settings.typed import UNKNOWN, below, is_section
from bgrpo.settings.values import Few, KeysOf, Options, PathText, Section, Text
from bgrpo.sweep.config_keys import flat_keys, is_within

Searcher = Literal["grid", "random", "optuna"]
Scheduler = Literal["none", "asha", "median"]

ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,59}")
FIRST_CONFIRM_SEED = 1000
SAME_FOR_ALL = (
    "task",
    "evaluation",
    "budget",
    "steps",
    "epochs",
    "seed",
    "run",
    "tracking",
    "checkpoint",
    "policy",
    "watchdog",
)
SET_BY_THE_SWEEP = ("budget", "steps", "epochs", "seed", "run", "tracking", "evaluation.final")


Points = Annotated[int, Field(ge=1, le=1000)]
End = Annotated[int, Field(ge=-(10**12), le=10**12)] | Annotated[float, Field(ge=-(10**12), le=10**12)]
TrainingKeys = Annotated[Options, KeysOf(TrainConfig)]


class SpaceEntry(Section):
    """What one hyperparameter may be: a list of values, or a range. A range with two integers gives integers."""

    values: Annotated[list[Any], Field(max_length=1000)] | None = Field(None, description="tried as they are")
    min: End | None = Field(None, description="lower end of a range, included")
    max: End | None = Field(None, description="upper end of a range, included")
    log: bool = Field(False, description="uniform in the logarithm")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.values is None) == (self.min is None or self.max is None):
            raise ValueError("expected either values: […], or min and max")
        if self.values is not None:
            if not self.values or self.log or self.min is not None or self.max is not None:
                raise ValueError("values: expected at least one value, and no min, max or log besides")
        elif not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"min={self.min}, max={self.max}: expected min < max" + ", both above 0" * self.log)
        return self

    @property
    def low(self) -> float:
        """Lower end of the range."""
        return -math.inf if self.min is None else self.min

    @property
    def high(self) -> float:
        """Upper end of the range."""
        return math.inf if self.max is None else self.max

    @property
    def is_integer(self) -> bool:
        """True for a range of integers."""
        return isinstance(self.min, int) and isinstance(self.max, int)


def _dotted_entries(space: Any) -> Any:
    """Entries by dotted key, however deep the sections above them were written."""
    if not isinstance(space, dict):
        return space
    entries: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and not value.keys() & SpaceEntry.model_fields.keys():
            entries |= {f"{key}.{name}": entry for name, entry in _dotted_entries(value).items()}
        else:
            entries[key] = value
    return entries


Space = Annotated[dict[str, SpaceEntry], BeforeValidator(_dotted_entries), KeysOf(None)]


class Arm(Section):
    """One algorithm of the comparison."""

    set: TrainingKeys = Field({}, description="keys of the training configuration that make this arm")
    space: Space = Field({}, description="what is searched for this arm only")


class SweepBudget(Section):
    """What every trial may spend."""

    kind: Literal["steps", "completions", "tokens", "seconds"] = Field(
        "steps", description="gradient steps, scored completions, decoded tokens, or seconds of training"
    )
    amount: Annotated[float, Field(gt=0, le=10**12)] = Field(100, description="so many of them")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind != "seconds" and self.amount != int(self.amount):
            raise ValueError(f"budget.amount={self.amount:g}: expected a whole number of {self.kind}")
        return self


class SweepConfig(Section):
    """A comparison of algorithms: ``bgrpo sweep --config NAME key=value …``; every key below may be overridden.

    Each arm gets ``trials_per_arm`` points of its space, each trained with ``search_seeds`` seeds and judged on the
    validation problems; then the best point of each arm is trained with ``confirm_seeds`` fresh seeds and measured on
    the test problems. Without a space each arm is confirmed as it is.
    """

    base: PathText | None = Field(
        None, description="shipped training configuration, or YAML file, that trials start from"
    )
    train: TrainingKeys = Field({}, description="keys of the training configuration, for all trials")
    arms: Annotated[dict[str, Arm], Field(min_length=1, max_length=100)] = Field(
        {"bgrpo": Arm(set={"algorithm": "bgrpo"}), "grpo": Arm(set={"algorithm": "grpo"})},
        description="name -> the algorithm and what belongs to it",
    )
    space: Space = Field({}, description="training key -> values, or min and max; searched for every arm")
    searcher: Searcher = Field("random", description="how points are chosen; optuna needs the extra 'sweep'")
    scheduler: Scheduler = Field("none", description="which search trials are cut before their budget is spent")
    grace: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="part of the budget that no scheduler cuts short; needs evaluation.every in train"
    )
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = Field(3, description="of asha: keeps one trial in so many")
    trials_per_arm: Points | None = Field(None, description="points tried per arm; default: the whole grid")
    search_seeds: Annotated[int, Field(ge=1, le=FIRST_CONFIRM_SEED)] = Field(1, description="seeds of each point")
    confirm_seeds: Points = Field(3, description="fresh seeds of each arm's best point")
    metric: Text = Field(
        "beam_rank_score",
        description="validation metric that selects and that schedulers compare, larger being better; it decides on "
        "the test problems, too. Graded rewards: greedy_reward, greedy_PART, win_rate, …",
    )
    budget: SweepBudget = SweepBudget()
    baseline: Text | None = Field(None, description="arm that the report compares the others with; default: GRPO's")
    max_concurrent: Few | None = Field(None, description="trials at a time; default: as many as have room")
    seed: Annotated[int, Field(ge=0, lt=2**32 - 2 * FIRST_CONFIRM_SEED)] = Field(
        0, description="of the points; trials' seeds count from here"
    )
    tracking: TrackingSection = TrackingSection()
    run: RunSection = RunSection()

    @property
    def has_search(self) -> bool:
        """True when there is anything to search."""
        return bool(self.space) or any(arm.space for arm in self.arms.values())

    def space_of(self, arm: str) -> Space:
        """What is searched for an arm; its own entries win."""
        return self.space | self.arms[arm].space

    @property
    def searched_seeds(self) -> list[int]:
        """Seeds of the search trials, the same for every arm."""
        return [self.seed + i for i in range(self.search_seeds)] if self.has_search else []

    @property
    def confirmed_seeds(self) -> list[int]:
        """Fresh seeds, the same for every arm."""
        return [self.seed + FIRST_CONFIRM_SEED + i for i in range(self.confirm_seeds)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, arm in self.arms.items():
            if not ARM_NAME.fullmatch(name):
                raise ValueError(f"arms: {name!r}: expected a name of letters, digits, '_' and '.'")
            if self.has_search and not self.space_of(name):
                raise ValueError(
                    f"arms.{name} has nothing to search while others have, so it would get fewer trials: give it "
                    f"arms.{name}.space, or set space for all"
                )
            _check_sections(arm.set, f"arms.{name}.set")
            _check_comparable([*flat_keys(arm.set), *arm.space], f"arms.{name}")
            if twice := sorted(flat_keys(arm.set).keys() & self.space_of(name).keys()):
                raise ValueError(f"arms.{name}.set.{twice[0]} is searched too, so it would count nowhere: leave it out")
        _check_comparable(list(self.space), "space")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline={self.baseline}: expected one of the arms: {', '.join(self.arms)}")
        _check_sections(self.train, "train")
        for key in flat_keys(self.train):
            if any(is_within(key, name) for name in SET_BY_THE_SWEEP):
                raise ValueError(f"train.{key} is set by the sweep: use the sweep's own budget, seed, run and tracking")
        return self


def _check_sections(values: dict[str, Any], where: str) -> None:
    """A value in a section's place would vanish below what arms and points lay over it."""
    for key, value in flat_keys(values).items():
        if is_section(below(TrainConfig, key)) and not isinstance(value, dict):
            raise ValueError(f"{where}.{key}={shown(value)}: expected a mapping of keys to values")


def _check_comparable(keys: Sequence[str], where: str) -> None:
    for key in keys:
        if any(is_within(key, name) for name in SAME_FOR_ALL):
            raise ValueError(
                f"{where}: {key} must be the same for every trial, else they could not be compared: set it in train, "
                f"or by the sweep's own budget, seed, run and tracking"
            )
        if below(TrainConfig, key) is UNKNOWN:
            raise ValueError(f"{where}: {unknown_key(key, TrainConfig)}")
