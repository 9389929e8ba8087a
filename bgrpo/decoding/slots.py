"""The K slots of each prompt, the rows that go through the model, and how a step's slots are chosen.

Shape letters: G prompts, K slots per prompt, R rows, E model width, V vocabulary, F = min(K, V) best tokens of a row,
B of a block of the vocabulary, C candidates of a prompt, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bgrpo.decoding.token_mask import Forbids

NO_TOKEN = -1
"""Token of a slot that was not extended, because its completion had ended or it holds none."""

LOGITS_AT_ONCE = 1 << 22
"""Most logits that are held at a time: 16 MiB of fp32, whatever the vocabulary."""

_STRIDES = 16  # a block's best are looked for among the largest of every 16 logits first


@dataclass(frozen=True, slots=True)
class Slots:
    """Hypotheses of every prompt after one step.

    Attributes:
        parents_GK: slot of the step before that this one goes on from.
        tokens_GK: token added in this step, or :data:`NO_TOKEN`.
        logps_GK: its log-probability in the distribution chosen from (fp32), 0 without token.
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
        all_live: every slot is a row, and goes on: what holds for slots holds for rows, without looking them up. Before
            any completion has ended that is so at every step, and for one prompt the looking up takes longer than the
            choice.
    """

    flat_R: Tensor
    prompt_R: Tensor
    slot_R: Tensor
    all_live: bool = False

    @classmethod
    def of(cls, flat_R: Tensor, group_size: int, all_live: bool = False) -> Rows:
        """Rows of the given flat places among K = ``group_size`` slots per prompt."""
        return cls(flat_R, flat_R // group_size, flat_R % group_size, all_live)

    @classmethod
    def live(cls, slots: Slots) -> Rows:
        """One row per live slot. Waits for the device: their number must be known."""
        flat_R = slots.live_GK.flatten().nonzero().squeeze(1)
        return cls.of(flat_R, slots.live_GK.shape[1], len(flat_R) == slots.live_GK.numel())

    def of_slots(self, values_GK: Tensor) -> Tensor:
        """What slots have, for each row: [R]."""
        return values_GK.flatten() if self.all_live else values_GK.flatten()[self.flat_R]


@dataclass(frozen=True, slots=True)
class Head:
    """From hidden states to logits, a block of the vocabulary at a time.

    Attributes:
        blocks: each gives the logits of its part of the vocabulary, in fp32; the parts follow each other.
        vocabulary: V, of all blocks together.
    """

    blocks: tuple[Callable[[Tensor], Tensor], ...]
    vocabulary: int


class RowLogits:
    """The next-token logits of all rows, made a part at a time so that memory is bounded for any vocabulary.

    Args:
        hidden_RE: last hidden states; fillers may follow the rows.
        head: makes the logits.
        penalties: what is forbidden; None: nothing.
    """

    def __init__(self, hidden_RE: Tensor, head: Head, penalties: Forbids | None = None) -> None:
        self._hidden_RE = hidden_RE
        self._head = head
        self._penalties = penalties
        self.vocabulary = head.vocabulary

    def under(self, penalties: Forbids) -> RowLogits:
        """The same logits, with these forbidden."""
        return RowLogits(self._hidden_RE, self._head, penalties)

    def best(self, count: int, rows: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities (fp32) and tokens [R, F] of the ``count`` best of each of the first ``rows`` rows.

        Goes through the vocabulary block by block with all rows at once, so that the head's weights, most of the
        memory traffic where the vocabulary is large, are read once per step.
        """
        if len(self._head.blocks) == 1:
            logits_RB = self._whole(slice(0, rows))
            best_RF, tokens_RF = _best(logits_RB, count)
            total_R1 = logits_RB.sub_(best_RF[:, :1]).exp_().sum(-1, keepdim=True)
            return (best_RF - best_RF[:, :1]) - total_R1.log_(), tokens_RF
        best, tokens, start = [], [], 0
        largest_R1 = self._hidden_RE.new_full((rows, 1), torch.finfo(torch.float32).min)  # a logit may be -inf
        total_R1 = torch.zeros_like(largest_R1)  # of exp(logit - largest)
        for block in self._head.blocks:
            logits_RB = block(self._hidden_RE)[:rows]
            if self._penalties is not None:
                self._penalties.add_to(logits_RB, start, 0)
            block_best, places = _best(logits_RB, min(count, logits_RB.shape[1]))
            best.append(block_best)
            tokens.append(places + start)
            start += logits_RB.shape[1]
            before_R1, largest_R1 = largest_R1, torch.maximum(largest_R1, block_best[:, :1])
            total_R1 = total_R1 * (before_R1 - largest_R1).exp_()
            total_R1 += logits_RB.sub_(largest_R1).exp_().sum(-1, keepdim=True)
        best_RF, picks_RF = torch.cat(best, 1).topk(count, dim=-1)
        return (best_RF - largest_R1) - total_R1.log_(), torch.cat(tokens, 1).gather(1, picks_RF)

    def map(self, function: Callable[[Tensor, slice], tuple[Tensor, ...]], rows: int) -> tuple[Tensor, ...]:
        """Apply ``function(logits_RV, piece)`` to pieces of the first ``rows`` rows, and join the results."""
        size = max(1, LOGITS_AT_ONCE // self.vocabulary)
        pieces = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        results = [function(self._whole(piece), piece) for piece in pieces]
        return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def _whole(self, piece: slice) -> Tensor:
        parts = [block(self._hidden_RE[piece]) for block in self._head.blocks]
        logits_RV = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if self._penalties is not None:
            self._penalties.add_to(logits_RV, 0, piece.start)
        return logits_RV


def _best(logits_RB: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, largest first, and their places.

    Of a wide block the columns whose 16 logits have the largest maxima are found first: the largest of all are there.
    """
    width = logits_RB.shape[1] // _STRIDES
    if logits_RB.shape[1] % _STRIDES or width < 4 * count:
        return logits_RB.topk(count, dim=-1)
    columns_RF = logits_RB.unflatten(1, (_STRIDES, width)).amax(1).topk(count, dim=-1).indices
    strides = torch.arange(_STRIDES, device=logits_RB.device) * width
    places = (columns_RF[:, :, None] + strides).flatten(1)
    best_RF, picks_RF = logits_RB.gather(1, places).topk(count, dim=-1)
    return best_RF, places.gather(1, picks_RF)


def root_slots(tokens_G: Tensor, group_size: int, live: int) -> Slots:
    """The empty completion after each prompt's last token, in the first ``live`` of K = ``group_size`` slots."""
    parents_GK = torch.zeros(len(tokens_G), group_size, dtype=torch.long, device=tokens_G.device)
    live_GK = (torch.arange(group_size, device=tokens_G.device) < live).expand(len(tokens_G), -1)
    scores_GK = torch.zeros_like(parents_GK, dtype=torch.float64).masked_fill_(~live_GK, -torch.inf)
    logps_GK = torch.zeros_like(scores_GK, dtype=torch.float32)
    return Slots(parents_GK, tokens_G[:, None].expand(-1, group_size), logps_GK, scores_GK, live_GK)


def goes_on(tokens: Tensor, end_tokens: Sequence[int]) -> Tensor:
    """True at tokens that do not end a completion."""
    on = tokens != end_tokens[0]
    for end in end_tokens[1:]:
        on &= tokens != end
    return on


class Chooser(Protocol):
    """Chooses the slots of the next step.

    Attributes:
        roots: slots per prompt that start with the empty completion.
        waits: it reads values of the device at each step, so that steps cannot be recorded and replayed.
    """

    roots: int
    waits: bool

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """The next slots.

        Args:
            logits: of the rows.
            rows: all live slots are among them; rows of others count for nothing.
            slots: the slots of the step before.
            step: from 0, a scalar on the device.
        """
        ...
