"""What a family of models does to the logits that its head gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class LogitTreatment:
    """Applied to each logit alone.

    Attributes:
        cap: logits become ``cap * tanh(logit / cap)`` (Gemma); None: they stay.
        divisor: they are divided by this (Granite).
    """

    cap: float | None = None
    divisor: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LogitTreatment:
        """As the model's configuration says."""
        if cap := getattr(config, "final_logit_softcapping", None):
            return cls(cap=cap)
        return cls(divisor=getattr(config, "logits_scaling", None) or None)

    def __call__(self, logits: Tensor) -> Tensor:
        """The treated logits, in the same memory."""
        if self.cap is not None:
            return logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits if self.divisor is None else logits.div_(self.divisor)

    def backward(self, grad: Tensor, treated: Tensor) -> Tensor:
        """Gradient of the logits from that of the treated ones, in its memory; ``treated`` is overwritten."""
        if self.cap is not None:
            return grad.mul_(treated.div_(self.cap).clamp_(-1, 1).square_().neg_().add_(1))
        return grad if self.divisor is None else grad.div_(self.divisor)
