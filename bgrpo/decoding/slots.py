"""The K slots of each prompt, the rows that go through the model, and how a step's slots are chosen.

Shape letters: G prompts, K slots per prompt, R rows, E model width, V vocabulary, F = min(K, V) best tokens of a row,
C candidates of a prompt, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NO_TOKEN = -1
"""Token of a slot that was not extended, because its completion had ended or it holds none."""

_LOGITS_AT_ONCE = 1 << 22  # 16 MiB of fp32, whatever the vocabulary


@dataclass(frozen=True, slots=True)
class Slots:
    """Hypotheses of every prompt after one step.

    Attributes:
        parents_GK: slot of the step before that this one goes on from.
        tokens_GK: token added in this step, or :data:`NO_TOKEN`.
        logps_GK: its log-probability at temperature 1 (fp32), 0 without token.
        scores_GK: summed log-probability (fp64); -inf where a slot holds no hypothesis, as there are too few.
        live_GK: True where the hypothesis goes on: it exists and has not ended.
    """

    parents_GK: Tensor
    tokens_GK: Tensor
    logps_GK: Tensor
    scores_GK: Tensor
    live_GK: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The slots that a forward pass extends, prompt by prompt.

    Attributes:
        flat_R: prompt * K + slot, increasing.
        prompt_R: prompt of each row.
        slot_R: slot of each row.
    """

    flat_R: Tensor
    prompt_R: Tensor
    slot_R: Tensor

    @classmethod
    def of(cls, flat_R: Tensor, width: int) -> Rows:
        """Rows of the given flat places among K = ``width`` slots per prompt."""
        return cls(flat_R, flat_R // width, flat_R % width)

    @classmethod
    def live(cls, slots: Slots) -> Rows:
        """One row per live slot. Waits for the device: their number must be known."""
        return cls.of(slots.live_GK.flatten().nonzero().squeeze(1), slots.live_GK.shape[1])


class RowLogits:
    """The next-token logits of all rows, made a few rows at a time so that memory is bounded for any vocabulary.

    Args:
        hidden_RE: last hidden states; fillers may follow the rows.
        head: from hidden states to logits.
        vocabulary: V.
    """

    def __init__(self, hidden_RE: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> None:
        self._hidden_RE = hidden_RE
        self._head = head
        self.vocabulary = vocabulary

    def map(self, function: Callable[[Tensor, slice], tuple[Tensor, ...]], rows: int) -> tuple[Tensor, ...]:
        """Apply ``function(logits_RV, piece)`` to pieces of the first ``rows`` rows, and join the results."""
        size = max(1, _LOGITS_AT_ONCE // self.vocabulary)
        pieces = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        results = [function(self._head(self._hidden_RE[piece]).float(), piece) for piece in pieces]
        return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def root_slots(tokens_G: Tensor, width: int, live: int) -> Slots:
    """The empty completion after each prompt's last token, in the first ``live`` of K = ``width`` slots."""
    parents_GK = torch.zeros(len(tokens_G), width, dtype=torch.long, device=tokens_G.device)
    live_GK = (torch.arange(width, device=tokens_G.device) < live).expand(len(tokens_G), -1)
    scores_GK = torch.zeros_like(parents_GK, dtype=torch.float64).masked_fill_(~live_GK, -torch.inf)
    logps_GK = torch.zeros_like(scores_GK, dtype=torch.float32)
    return Slots(parents_GK, tokens_G[:, None].expand(-1, width), logps_GK, scores_GK, live_GK)


class Chooser(Protocol):
    """Chooses the slots of the next step.

    Attributes:
        roots: slots per prompt that start with the empty completion.
    """

    roots: int

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """The next slots.

        Args:
            logits: of the rows.
            rows: all live slots are among them; rows of others count for nothing.
            slots: the slots of the step before.
            step: from 0, a scalar on the device.
        """
        ...
