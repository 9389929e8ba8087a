"""The configuration of supervised training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bgrpo.config.problems import TaskSection, steps_of_epochs
from bgrpo.config.upkeep import RunSection, TrackingSection
from bgrpo.settings.values import (
    Batch,
    Cores,
    Epochs,
    Few,
    Fraction,
    NonNegative,
    PathText,
    Positive,
    Rate,
    Scale,
    Section,
    Seed,
    ThreadsOrAuto,
    Weight,
    Width,
)

MAX_PARAMETERS = 10**11
LAYERS, HEADS, WIDTH, CONTEXT = 3, 4, 128, 256
"""Of a new policy, unless the configuration says."""
RATE_NEW, RATE_GOING_ON = 2e-3, 2e-5
"""Learning rates, likewise."""


class StartSection(Section):
    """The policy that supervised training goes on from."""

    path: PathText | None = Field(
        None, description="'shipped', a directory, or a Hugging Face model id; without one, a new policy is made"
    )


class PretrainConfig(Section):
    """Supervised training of a policy from generated or given data: ``bgrpo pretrain --config NAME key=value …``."""

    seed: Seed = Field(0, description="of initialisation and data order")
    policy: StartSection = StartSection()
    layers: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description=f"transformer blocks of a new policy; default: {LAYERS}"
    )
    heads: Few | None = Field(None, description=f"attention heads per block of a new policy; default: {HEADS}")
    width: Width | None = Field(
        None, description=f"width of a new policy's residual stream, a multiple of heads; default: {WIDTH}"
    )
    encoder: bool | None = Field(
        None,
        description="a new policy is a T5, with so many blocks in its encoder and in its decoder; default: a GPT-2",
    )
    context: Batch | None = Field(
        None,
        description=f"longest prompt plus completion in tokens, with an encoder longest passage; default: "
        f"policy.path's, {CONTEXT} for a new policy",
    )
    vocabulary: Annotated[int, Field(ge=258, le=10**6)] | None = Field(
        None,
        description="tokens of a new policy for a task without a tokenizer: a byte-level BPE trained on the training "
        "problems",
    )
    task: TaskSection = TaskSection()
    steps: Positive = Field(2000, description="optimizer steps")
    epochs: Epochs | None = Field(
        None, description="passes over the training lines: where they are given, they decide the number of steps"
    )
    batch_size: Batch = Field(64, description="lines per optimizer step, over all workers")
    learning_rate: Rate | None = Field(
        None,
        description=f"peak learning rate of AdamW; default: {RATE_NEW:g} for a new policy, {RATE_GOING_ON:g} with "
        "policy.path",
    )
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
    long_lines: Literal["refuse", "drop"] = Field(
        "refuse", description="lines that max_new_tokens or context would cut: refuse them, or leave them out"
    )
    validate_every: Positive = Field(500, description="optimizer steps between validations and checkpoints")
    validation_problems: Positive = Field(200, description="held-out problems per validation")
    keep: Positive = Field(2, description="newest checkpoints to keep; the best one is kept besides")
    tracking: TrackingSection = TrackingSection()
    run: RunSection = RunSection()
    out: PathText | None = Field(None, description="where to write the policy; default: the run folder")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, heads, width and context of a new policy."""
        return self.layers or LAYERS, self.heads or HEADS, self.width or WIDTH, self.context or CONTEXT

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate asked for, or the one that suits where training starts."""
        return self.learning_rate or (RATE_NEW if self.policy.path is None else RATE_GOING_ON)

    def with_steps(self, lines: int) -> Self:
        """Where ``epochs`` are given, the same with the ``steps`` that they come to.

        Args:
            lines: how many there are to train on.
        """
        if self.epochs is None:
            return self
        return self.model_copy(update={"steps": steps_of_epochs(self.epochs, lines, self.batch_size)})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layers, heads, width, context = self.shape
        for name in ("layers", "heads", "width", "encoder", "vocabulary"):
            if self.policy.path is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} is of a new policy, but policy.path={self.policy.path} is there "
                    f"already: leave it out (or {name}=null), or leave out policy.path"
                )
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}")
        if 12 * layers * width**2 > MAX_PARAMETERS:
            raise ValueError(
                f"12 × layers={layers} × width={width}² = {12 * layers * width**2:.0e} parameters "
                f"in the blocks, more than {MAX_PARAMETERS:.0e}"
            )
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of workers={self.workers}")
        if self.max_new_tokens >= context and (self.context is not None or self.policy.path is None):
            raise ValueError(f"max_new_tokens={self.max_new_tokens} leaves no room in context={context}")
        return self
