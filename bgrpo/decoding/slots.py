"""The K slots of each prompt, and how a step's slots are chosen from the model's logits.

Shape letters: G prompts, S rows fed to the model, V vocabulary, W ≤ K slots of the step before, K completions per
prompt, F = min(K, V) best tokens of a row, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

NO_TOKEN = -1
"""Token of a slot that was not extended, because its completion had ended or it holds none."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Hypotheses of every prompt after one step.

    Attributes:
        parents_GW: slot of the step before that this one goes on from.
        tokens_GW: token added in this step, or :data:`NO_TOKEN`.
        logps_GW: its log-probability at temperature 1 (fp32), 0 without token.
        scores_GW: summed log-probability (fp64); -inf where a slot holds no hypothesis, as there are too few.
        live_GW: True where the hypothesis goes on: it exists and has not ended.
    """

    parents_GW: Tensor
    tokens_GW: Tensor
    logps_GW: Tensor
    scores_GW: Tensor
    live_GW: Tensor

    def keep(self, prompts: Tensor) -> Slots:
        """The slots of some prompts only."""
        return Slots(*(getattr(self, field.name)[prompts] for field in fields(self)))

    def take(self, order_GW: Tensor) -> Slots:
        """The slots at the given places of each prompt, in that order."""
        return Slots(*(getattr(self, field.name).gather(1, order_GW) for field in fields(self)))

    def live_first(self) -> Slots:
        """The same slots, those that go on moved to the front; the order is kept otherwise."""
        return self.take((~self.live_GW).to(torch.uint8).argsort(dim=-1, stable=True))


def root_slots(tokens_G: Tensor) -> Slots:
    """One slot per prompt: the empty completion after the prompt's last token."""
    tokens_G1 = tokens_G[:, None]
    scores_G1 = torch.zeros_like(tokens_G1, dtype=torch.float64)
    return Slots(torch.zeros_like(tokens_G1), tokens_G1, scores_G1.float(), scores_G1, scores_G1 == 0)


class Chooser(Protocol):
    """Chooses the slots of the next step."""

    def choose(self, logits_GSV: Tensor, slots: Slots) -> Slots:
        """The next slots.

        Args:
            logits_GSV: fp32 logits after the first S slots; all live slots are among these.
            slots: the slots of the step before.

        Returns:
            Slots with the live ones moved to the front, so that a later step may feed only these.
        """
        ...

    def keep(self, prompts: Tensor) -> None:
        """Forget all but the given prompts, which keep their order."""
        ...
