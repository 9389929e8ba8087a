"""The update."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bgrpo.config.lora import LoraSection
from bgrpo.config.loss import (
    CISPO_RATIO,
    CLIPPED,
    MIXING_OF_BF16,
    Loss,
    ReferenceSection,
    RolloutCorrectionSection,
    SapoSection,
    VespoSection,
)
from bgrpo.settings.values import (
    Batch,
    Cores,
    Few,
    Fraction,
    NonNegative,
    Rate,
    Scale,
    Section,
    Text,
    ThreadsOrAuto,
    Weight,
)


class LearnerSection(Section):
    """The update, and the processes that do it."""

    workers: Few = Field(1, description="learner processes; gradients are averaged, groups never split")
    threads: ThreadsOrAuto = Field(0, description="torch threads of one learner; 0 means cores / workers")
    cpus_per_worker: Cores = Field(0.5, description="Ray CPUs that one learner reserves")
    gpus_per_worker: Cores = Field(0.0, description="Ray GPUs that one learner reserves")
    node_resource: Text | None = Field(None, description="Ray resource of the nodes that learners run on")
    optimizer: Literal["adafactor", "adamw", "adamw_8bit", "muon", "sgd"] = Field(
        "adamw", description="muon: of the layers' matrices, with adamw for the rest; adamw_8bit needs bitsandbytes"
    )
    learning_rate: Rate = Field(1e-4, description="peak learning rate")
    warmup_steps: NonNegative = Field(10, description="training steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after the warm-up")
    min_learning_rate_ratio: Fraction = Field(0.1, description="where the schedule ends")
    weight_decay: Weight = Field(0.0, description="of all weights but norms and biases")
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="of AdamW")
    max_grad_norm: Scale = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraSection = LoraSection()
    loss: Loss = Field("dapo", description="TRL's loss; see the page on algorithms for each")
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None, description="one ratio for each token, or for the completion (GSPO); default: token, of luspo sequence"
    )
    epsilon: Scale = Field(0.2, description="clip range of the probability ratio")
    epsilon_high: Scale | None = Field(
        None, description="clip range upwards; default: epsilon; of cispo: the largest ratio itself, 5"
    )
    delta: Scale | None = Field(
        None, description="largest ratio of all, where the advantage is negative; default: none"
    )
    sapo: SapoSection = SapoSection()
    vespo: VespoSection = VespoSection()
    mask_truncated: bool = Field(False, description="leave completions that max_new_tokens cut off out of the loss")
    top_entropy_quantile: Fraction = Field(
        1.0, description="share of a minibatch's tokens, those of highest entropy, that the loss learns from"
    )
    entropy_coef: Weight = Field(0.0, description="weight of the mean entropy of a token, which is made larger")
    beta: Weight = Field(0.01, description="weight of the KL to the reference policy")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="of the KL; default: k3 in the loss, k1 in the reward"
    )
    kl_in_reward: bool = Field(False, description="take beta times a completion's KL off its reward, not into the loss")
    kl_bias_correction: bool = Field(False, description="multiply the KL in the loss by the ratio, as DeepSeek-V3.2")
    reference: ReferenceSection = ReferenceSection()
    rollout_correction: RolloutCorrectionSection = RolloutCorrectionSection()
    num_iterations: Few = Field(1, description="mu: passes over each batch of rollouts")
    minibatches: Few = Field(1, description="optimizer steps per pass")
    micro_groups: Batch = Field(8, description="groups per forward pass of one learner (bounds memory)")
    dtype: Literal["fp32", "bf16", "pure_bf16"] = Field(
        "fp32",
        description="bf16: matrix products of the layers in bf16, weights and all else in fp32; pure_bf16: weights, "
        "gradients and the optimizer's state in bf16 too, rounded by chance. The head multiplies in fp32 in each",
    )
    gradient_checkpointing: bool = Field(
        False, description="layers keep their inputs only, and are computed again for the backward pass: less memory"
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: every learner holds a share of weights, reference, gradients and optimizer's state (FSDP2)",
    )
    max_kl: Scale = Field(10.0, description="stop with a message when KL passes this")
    max_failures: NonNegative = Field(
        3, description="crashes of learners or of the rollout service to survive by resuming from the last checkpoint"
    )

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        """Of the importance ratio: as asked for, or as the loss is defined."""
        return self.importance_sampling_level or ("sequence" if self.loss == "luspo" else "token")

    @property
    def upper_clip(self) -> float:
        """TRL's ``epsilon_high``."""
        return self.epsilon_high or (CISPO_RATIO if self.loss == "cispo" else self.epsilon)

    @property
    def estimator(self) -> Literal["k1", "k2", "k3"]:
        """Of the KL."""
        return self.kl_estimator or ("k1" if self.kl_in_reward else "k3")

    @property
    def reference_dtype(self) -> Literal["fp32", "bf16"]:
        """Of the reference's weights: as asked for, or as the learner computes."""
        rounded = self.dtype != "fp32" and not self.lora.is_on  # with an adapter it is the policy's own weights
        return self.reference.dtype or ("bf16" if rounded else "fp32")

    @model_validator(mode="after")
    def _loss_applies(self) -> Self:
        defaults = type(self).model_fields
        if self.loss not in CLIPPED:
            if self.epsilon != defaults["epsilon"].default:
                raise ValueError(f"epsilon={self.epsilon:g}: loss={self.loss} has no lower clip; {_clipped()}")
            if self.delta is not None:
                raise ValueError(f"delta={self.delta:g}: loss={self.loss} does not clip ratios; {_clipped()}")
            if self.epsilon_high is not None and self.loss != "cispo":
                raise ValueError(f"epsilon_high={self.epsilon_high:g}: loss={self.loss} has no clip; {_clipped()}")
        if self.loss == "cispo" and self.upper_clip < 1:
            raise ValueError(
                f"epsilon_high={self.upper_clip:g}: of loss=cispo it is the largest ratio itself, so at least 1; "
                f"its authors take {CISPO_RATIO:g}"
            )
        if self.delta is not None and self.delta <= 1 + self.upper_clip:
            raise ValueError(f"delta={self.delta:g} must lie above 1 + epsilon_high = {1 + self.upper_clip:g}")
        for name in ("sapo", "vespo"):
            if self.loss != name and getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} holds options of loss={name}, but loss={self.loss}: leave them out")
        if self.loss == "luspo" and self.ratio_level == "token":
            raise ValueError("importance_sampling_level=token: loss=luspo is defined on sequence ratios; leave it out")
        if self.loss == "vespo" and self.ratio_level == "sequence":
            raise ValueError(
                "importance_sampling_level=sequence: loss=vespo makes its own weight of each completion; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _kl_applies(self) -> Self:
        if not self.beta:
            named = {
                "kl_in_reward": self.kl_in_reward,
                "kl_estimator": self.kl_estimator,
                "kl_bias_correction": self.kl_bias_correction,
                "reference.sync_every": self.reference.sync_every,
                "reference.dtype": self.reference.dtype,
                "reference.path": self.reference.path,
            }
            for name, value in named.items():
                if value:
                    raise ValueError(f"{name}={value} needs a KL: beta=0 has none, and no reference")
        if self.kl_bias_correction and (self.kl_in_reward or self.estimator != "k3"):
            raise ValueError("kl_bias_correction is of the k3 estimate in the loss: it needs kl_in_reward=false and k3")
        if self.reference.path is not None and self.reference.sync_every:
            raise ValueError(
                f"reference.sync_every={self.reference.sync_every}: a reference that follows the policy starts as the "
                "starting policy: leave out reference.path"
            )
        mixing = self.reference.mixing
        if not self.reference.sync_every and mixing != ReferenceSection.model_fields["mixing"].default:
            raise ValueError(f"reference.mixing={mixing:g} needs reference.sync_every above 0")
        if self.lora.is_on and self.reference.sync_every and mixing != 1:
            raise ValueError(
                f"reference.mixing={mixing:g}: with lora the reference is an adapter of the same rank, "
                f"and a mixture of two has a higher one; set reference.mixing=1, which copies the policy's"
            )
        if self.lora.is_on and self.reference.dtype == "bf16":
            raise ValueError(
                "reference.dtype=bf16: with lora the reference is the policy's own weights, its adapter off, and has "
                "no copy that could be rounded; leave it out"
            )
        if self.lora.is_on and self.dtype == "pure_bf16":
            raise ValueError(
                "dtype=pure_bf16: with lora the weights are frozen, and shared with what decodes, so rounding them "
                "would change the policy; dtype=bf16 computes in bf16"
            )
        if self.reference.sync_every and mixing < MIXING_OF_BF16 and self.reference_dtype == "bf16":
            raise ValueError(
                f"reference.mixing={mixing:g}: a reference in bf16 would lose moves so small; take at least "
                f"{MIXING_OF_BF16:g}, or reference.dtype=fp32"
            )
        return self

    @model_validator(mode="after")
    def _correction_applies(self) -> Self:
        correction = self.rollout_correction
        if correction.kind == "none" and correction != RolloutCorrectionSection(kind="none"):
            raise ValueError("rollout_correction has bounds or a level, but kind=none: set kind=truncate or mask")
        if self.loss == "vespo" and correction.level == "sequence":
            raise ValueError("rollout_correction.level=sequence: loss=vespo takes ratios of tokens only; use token")
        return self

    @model_validator(mode="after")
    def _sharding_applies(self) -> Self:
        if self.sharding == "none":
            return self
        if self.workers == 1:
            raise ValueError(
                "sharding=full shares the weights among learners, but workers=1; take more, or leave it out"
            )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(
                f"sharding=full: optimizer={self.optimizer} reads whole matrices, or keeps its state in a form of its "
                "own; take adamw or sgd"
            )
        if self.dtype == "pure_bf16":
            raise ValueError(
                "sharding=full: dtype=pure_bf16 draws its rounding for whole weights; dtype=bf16 computes in bf16"
            )
        if self.lora.is_on:
            raise ValueError(
                "sharding=full: with lora only the frozen weights are large, and these are shared with the reference; "
                "leave sharding out"
            )
        if self.kl_in_reward:
            raise ValueError(
                "sharding=full: with kl_in_reward each learner asks the reference about groups of its own, but its "
                "weights must be gathered by all at once; take the KL into the loss, or leave sharding out"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_applies(self) -> Self:
        default = type(self).model_fields["adam_beta2"].default
        if self.optimizer in ("adafactor", "sgd") and self.adam_beta2 != default:
            raise ValueError(f"adam_beta2={self.adam_beta2:g}: optimizer={self.optimizer} has no such moment")
        if self.optimizer == "adamw_8bit" and self.dtype == "pure_bf16":
            raise ValueError(
                "dtype=pure_bf16: optimizer=adamw_8bit keeps its state in a form of its own, which cannot be rounded "
                "by chance; use dtype=bf16, or another optimizer"
            )
        return self


def _clipped() -> str:
    return f"the losses that clip are {', '.join(CLIPPED)}"
