"""The update."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bgrpo.settings.values import Batch, Cores, Few, Fraction, NonNegative, Scale, Section, Text, ThreadsOrAuto, Weight


class LearnerSection(Section):
    """The update, and the processes that do it."""

    workers: Few = Field(1, description="learner processes; gradients are averaged, groups never split")
    threads: ThreadsOrAuto = Field(0, description="torch threads of one learner; 0 means cores / workers")
    cpus_per_worker: Cores = Field(0.5, description="Ray CPUs that one learner reserves")
    gpus_per_worker: Cores = Field(0.0, description="Ray GPUs that one learner reserves")
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that learners run on")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(1e-4, description="peak learning rate of AdamW")
    warmup_steps: NonNegative = Field(10, description="training steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after the warm-up")
    min_learning_rate_ratio: Fraction = Field(0.1, description="where the schedule ends")
    weight_decay: Weight = Field(0.0, description="of AdamW")
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="of AdamW")
    max_grad_norm: Scale = Field(1.0, description="gradient norm is clipped to this")
    epsilon: Scale = Field(0.2, description="clip range of the probability ratio")
    beta: Weight = Field(0.01, description="weight of the k3 KL to the reference policy")
    num_iterations: Few = Field(1, description="mu: passes over each batch of rollouts")
    minibatches: Few = Field(1, description="optimizer steps per pass")
    micro_groups: Batch = Field(8, description="groups per forward pass of one learner (bounds memory)")
    max_kl: Scale = Field(10.0, description="stop with a message when KL passes this")
    max_failures: NonNegative = Field(
        3, description="crashes of learners or of the rollout service to survive by resuming from the last checkpoint"
    )
