"""What happens beside learning: evaluation, checkpoints, records, budgets, watching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bgrpo.config.rewards import RANK_WIDTH
from bgrpo.settings.values import NonNegative, PathText, Positive, Samples, Seconds, Section, Text, Width


class EvaluationSection(Section):
    """Held-out metrics."""

    every: NonNegative = Field(0, description="training steps between validations; 0: none")
    problems: Positive = Field(200, description="validation problems used each time")
    beam_widths: Annotated[list[Width], Field(max_length=100)] = Field(
        [1, 3, 5, 10], description="beam@k widths of the before/after table"
    )
    samples: Samples = Field(10, description="samples per problem for pass@k; 0: none")
    validation_samples: Samples = Field(0, description="samples per problem for pass@k at each validation; 0: none")
    validation_beam_widths: Annotated[list[Width], Field(max_length=100)] = Field(
        [RANK_WIDTH], description="beam@k widths of each validation"
    )
    temperature: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        1.0,
        description="of the samples behind pass@k, oracle and sample_reward; at 1 figures of different runs compare",
    )
    final: bool = Field(True, description="make the before/after table on the test problems")


class CheckpointSection(Section):
    """When to save, and what to keep."""

    every: Positive = Field(50, description="training steps between checkpoints")
    keep: Positive = Field(2, description="newest checkpoints to keep; the best one is kept besides")
    metric: Text | None = Field(
        None,
        description="validation metric that decides which checkpoint is best, larger being better; default: "
        "beam_rank_score, or greedy_reward where nothing says what is correct",
    )


class TrackingSection(Section):
    """MLflow, and what else records metrics."""

    enabled: bool = Field(True, description="record the run in MLflow")
    uri: Text | None = Field(None, description="tracking server; default: an embedded sqlite store in run.dir")
    experiment: Text = Field("bgrpo", description="MLflow experiment; also the wandb project")
    also: Annotated[list[Literal["wandb", "tensorboard"]], Field(max_length=2)] = Field(
        [], description="further places that get the metrics"
    )


class BudgetSection(Section):
    """What a run may spend besides ``steps``: it ends with the step that uses up the first of them.

    The learning-rate schedule then ends there too.
    """

    completions: Positive | None = Field(None, description="scored completions of training")
    tokens: Positive | None = Field(None, description="decoded tokens of training")
    seconds: Annotated[float, Field(gt=0, le=10**9)] | None = Field(
        None, description="of rollouts, weights and updates; start-up, validation and checkpoints do not count"
    )


class RunSection(Section):
    """Where the run lives. On a cluster this folder must be visible to the driver and to every learner."""

    dir: PathText = Field("runs", description="folder of all runs")
    name: Text | None = Field(None, description="name of this run; default: config, algorithm and start time")


class WatchdogSection(Section):
    """What to do when nothing moves."""

    stall_s: Seconds = Field(180.0, description="say who waits for whom after this silence")
    silence_s: Annotated[float, Field(ge=10, le=10**6)] = Field(
        30.0, description="replace a rollout actor or verifier whose process gives no sign of life for so long"
    )
