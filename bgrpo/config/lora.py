"""Low-rank adapters: what is learned in place of all weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bgrpo.settings.values import Scale, Section, Text


class LoraSection(Section):
    """LoRA (Hu et al. 2021): the policy's weights stay, and each chosen layer learns a product of two thin matrices."""

    rank: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="of the product that a layer learns (TRL's lora_r); 0: all weights are learned, without LoRA"
    )
    alpha: Scale | None = Field(
        None, description="the product is multiplied by alpha / rank (TRL's lora_alpha); default: twice the rank"
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1, max_length=1000)] = Field(
        "all-linear",
        description="which linear layers: all but the head, or names, as [q_proj, v_proj], or whole paths of them",
    )

    @property
    def is_on(self) -> bool:
        """Whether adapters are learned."""
        return self.rank > 0

    @property
    def alpha_value(self) -> float:
        """As given, or the default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _needs_a_rank(self) -> Self:
        if not self.rank and (self.alpha is not None or self.target_modules != "all-linear"):
            named = "target_modules" if self.alpha is None else "alpha"
            raise ValueError(f"{named} needs a rank above 0: rank=0 learns all weights, without LoRA; 16 is usual")
        return self
