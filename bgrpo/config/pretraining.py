"""The configuration of supervised training."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from bgrpo.config.problems import TaskSection
from bgrpo.config.upkeep import RunSection, TrackingSection
from bgrpo.settings.values import (
    Batch,
    Cores,
    Few,
    Fraction,
    NonNegative,
    PathText,
    Positive,
    Scale,
    Section,
    Seed,
    ThreadsOrAuto,
    Weight,
    Width,
)

MAX_PARAMETERS = 10**11


class PretrainConfig(Section):
    """Supervised training of a policy from generated or given data: ``bgrpo pretrain --config NAME key=value …``."""

    seed: Seed = Field(0, description="of initialisation and data order")
    layers: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="transformer blocks")
    heads: Few = Field(4, description="attention heads per block")
    width: Width = Field(128, description="width of the residual stream; a multiple of heads")
    context: Batch = Field(256, description="longest prompt plus completion in tokens")
    task: TaskSection = TaskSection()
    steps: Positive = Field(2000, description="optimizer steps")
    batch_size: Batch = Field(64, description="lines per optimizer step, over all workers")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(2e-3, description="peak learning rate of AdamW")
    warmup_steps: NonNegative = Field(100, description="optimizer steps of linear warm-up")
    min_learning_rate_ratio: Fraction = Field(0.1, description="where the cosine ends and stays")
    weight_decay: Weight = Field(0.01, description="of AdamW")
    max_grad_norm: Scale = Field(1.0, description="gradient norm is clipped to this")
    bf16: bool = Field(True, description="bf16 autocast; weights stay fp32")
    workers: Few = Field(1, description="Ray Train workers; gradients are averaged")
    threads: ThreadsOrAuto = Field(0, description="torch threads of one worker; 0 means cores / workers")
    cpus_per_worker: Cores = Field(0.5, description="Ray CPUs that one worker reserves")
    gpus_per_worker: Cores = Field(0.0, description="Ray GPUs that one worker reserves")
    max_failures: NonNegative = Field(3, description="worker crashes to survive by resuming from the last checkpoint")
    max_new_tokens: Batch = Field(32, description="longest answer, end token included")
    validate_every: Positive = Field(500, description="optimizer steps between validations and checkpoints")
    validation_problems: Positive = Field(200, description="held-out problems per validation")
    keep: Positive = Field(2, description="newest checkpoints to keep; the best one is kept besides")
    tracking: TrackingSection = TrackingSection()
    run: RunSection = RunSection()
    out: PathText | None = Field(None, description="where to write the policy; default: the run folder")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if 12 * self.layers * self.width**2 > MAX_PARAMETERS:
            raise ValueError(
                f"12 × layers={self.layers} × width={self.width}² = {12 * self.layers * self.width**2:.0e} parameters "
                f"in the blocks, more than {MAX_PARAMETERS:.0e}"
            )
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of workers={self.workers}")
        if self.max_new_tokens >= self.context:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} leaves no room in context={self.context}")
        return self
