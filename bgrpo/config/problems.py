"""Which problems a run learns from, is chosen by and is tested on."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from bgrpo.settings.values import Options, PathText, Positive, Section, Seed, Text

SPLITS = ("train", "validation", "test")


class ProblemSource(Section):
    """Where problems come from: a data file, or the task's generator."""

    file: PathText | None = Field(None, description="data file; when set, nothing is generated")
    options: Options = Field({}, description="of the task's generator: see bgrpo generate-data --help")
    count: Positive = Field(1000, description="how many problems to generate, or at most to read from the file")
    seed: Seed = Field(0, description="of the generator, or of what is held out")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="part of task.train's file to hold out for validation or test when they have no file; default: "
        "none, or 0.05 where the task has no generator",
    )


class TaskSection(Section):
    """The problems and their exact check."""

    name: Text = Field("polynomial", description="a shipped task's name, or 'module:Class'")
    options: Options = Field({}, description="arguments of the task")
    train: ProblemSource = Field(ProblemSource(count=50000, seed=1), description="problems to learn from")
    validation: ProblemSource = Field(ProblemSource(count=500, seed=2), description="problems for model selection")
    test: ProblemSource = Field(ProblemSource(count=1000, seed=3), description="problems for the before/after table")
    split_by: Text | None = Field(
        None, description="column whose values are never on two sides of a split that task.*.share makes"
    )
    allow_bad_lines: bool = Field(False, description="train on a file some of whose own answers are wrong")


def steps_of_epochs(epochs: float, problems: int, batch: int) -> int:
    """Batches that cover every problem ``epochs`` times: the last one may go on into the next pass."""
    return max(1, math.ceil(Fraction(str(epochs)) * problems / batch))
