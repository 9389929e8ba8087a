"""Which problems a run learns from, is chosen by and is tested on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field, model_validator

from bgrpo.settings.values import Options, PathText, Positive, Section, Seed, Text

SPLITS = ("train", "validation", "test")
GENERATED = 50_000
"""Problems to generate where nothing says how many."""


class ProblemSource(Section):
    """Where problems come from: a data file, or the task's generator."""

    file: PathText | None = Field(None, description="data file; when set, nothing is generated")
    options: Options = Field({}, description="of the task's generator: see bgrpo generate-data --help")
    count: Positive | None = Field(
        None,
        description="how many problems to generate, or at most to use of the file; null: all of the file, "
        f"{GENERATED:,} generated ones",
    )
    seed: Seed = Field(0, description="of the generator, or of what is held out")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="part of task.train's file to hold out for the test, or part of what that leaves for validation, "
        "when they have no file; default: none, or 0.05 where the task has no generator",
    )


class TaskSection(Section):
    """The problems and their exact check."""

    name: Text = Field("polynomial", description="a shipped task's name, or 'module:Class'")
    options: Options = Field({}, description="arguments of the task")
    train: ProblemSource = Field(ProblemSource(seed=1), description="problems to learn from")
    validation: ProblemSource = Field(ProblemSource(count=500, seed=2), description="problems for model selection")
    test: ProblemSource = Field(ProblemSource(count=1000, seed=3), description="problems for the before/after table")
    split_by: Text | None = Field(
        None, description="column whose values are never on two sides of a split that task.*.share makes"
    )
    allow_bad_lines: bool = Field(False, description="train on a file some of whose own answers are wrong")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        """A key of a split does not change what its other keys are by default."""
        if not isinstance(values, Mapping):
            return values
        own = {name: cls.model_fields[name].default.model_dump(exclude_unset=True) for name in SPLITS}
        return {**values, **{name: own[name] | given for name in SPLITS if isinstance(given := values.get(name), dict)}}


def steps_of_epochs(epochs: float, problems: int, batch: int) -> int:
    """Batches that cover every problem ``epochs`` times: the last one may go on into the next pass."""
    return max(1, math.ceil(Fraction(str(epochs)) * problems / batch))
