"""What the learner's loss is made of: TRL's losses and their options, the reference, what corrects the rollouts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bgrpo.settings.values import Fraction, NonNegative, PathText, Scale, Section, Weight

Loss = Literal["bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"]
CLIPPED = ("bnpo", "dapo", "dr_grpo", "grpo", "luspo")
"""Losses that clip the ratio to 1 - epsilon … 1 + epsilon_high."""
CISPO_RATIO = 5.0
"""Largest ratio of cispo where none is given: what its authors at scale recommend (ScaleRL)."""

MIXING_OF_BF16 = 0.5
"""Least mixing of a reference in bf16: one unit in the last place, times this, is still rounded to a move."""


class SapoSection(Section):
    """Of ``loss=sapo``: how fast the soft gate closes as the ratio leaves 1."""

    temperature_pos: Scale = Field(1.0, description="of tokens with a positive advantage")
    temperature_neg: Scale = Field(1.05, description="of the others")


class VespoSection(Section):
    """Of ``loss=vespo``: the weight of a completion with ratio w is w^k e^(lambda (1 - w))."""

    k_pos: Weight = Field(2.0, description="power, where the advantage is not negative")
    lambda_pos: Weight = Field(3.0, description="decay, where the advantage is not negative")
    k_neg: Weight = Field(3.0, description="power, where the advantage is negative")
    lambda_neg: Weight = Field(2.0, description="decay, where the advantage is negative")


class ReferenceSection(Section):
    """The reference policy of the KL, which may follow the policy. Without ``learner.beta`` there is none."""

    path: PathText | None = Field(
        None,
        description="'shipped', a directory, or a Hugging Face model id, with the policy's tokenizer; default: the "
        "starting policy",
    )
    dtype: Literal["fp32", "bf16"] | None = Field(
        None, description="of its weights; default: fp32 with learner.dtype=fp32, else bf16"
    )

    sync_every: NonNegative = Field(
        0, description="training steps between two moves of the reference; 0: it stays what it is"
    )
    mixing: Annotated[float, Field(gt=0, le=1)] = Field(
        0.6, description="share of the policy's weights in the reference's at each move; the rest are its own before"
    )


class RolloutCorrectionSection(Section):
    """Weights for the difference between the policy that decoded and the learner's, at the start of a step."""

    kind: Literal["none", "truncate", "mask"] | None = Field(
        None,
        description="ratios outside low … high become the bound (truncate: TIS), or 0 (mask: IcePop); default: none, "
        "and where rollout.top_k, top_p or min_p cut off what samples are drawn from: truncate, for that alone",
    )
    level: Literal["token", "sequence"] = Field(
        "token", description="one ratio for each token, or their product for the whole completion"
    )
    low: Fraction = Field(0.0, description="smallest ratio of learner to rollout that is left as it is")
    high: Annotated[float, Field(ge=1, le=10**6)] = Field(3.0, description="largest ratio that is left as it is")
