"""Decoding within what is allowed. Shape letters as in :mod:`bgrpo.decoding.slots`; E pairs of a row and a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgrpo.decoding.allowed import Walk
from bgrpo.decoding.slots import NO_TOKEN, Chooser, RowLogits, Rows, Slots


class AllowedChooser:
    """Another chooser, before whom all tokens that are not allowed have probability 0.

    Args:
        chooser: of tokens; forbids none itself.
        walk: through what is allowed.
        roots_G: nodes of the empty completions.
        group_size: K.
    """

    waits = True

    def __init__(self, chooser: Chooser, walk: Walk, roots_G: Tensor, group_size: int) -> None:
        self.roots = chooser.roots
        self._chooser = chooser
        self._walk = walk
        self._nodes_GK = roots_G[:, None].expand(-1, group_size)

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        only = OnlyAllowed(*self._walk.edges(self._nodes_GK.flatten()[rows.flat_R]))
        slots = self._chooser.choose(logits.under(only), rows, slots, step)
        before_GK = self._nodes_GK.gather(1, slots.parents_GK)
        extended_GK = (slots.tokens_GK != NO_TOKEN) & (slots.scores_GK > -torch.inf)
        self._nodes_GK = before_GK.clone()
        self._nodes_GK[extended_GK] = self._walk.follow(before_GK[extended_GK], slots.tokens_GK[extended_GK])
        return slots


@dataclass(frozen=True, slots=True)
class OnlyAllowed:
    """See :class:`bgrpo.decoding.token_mask.Penalties`.

    Attributes:
        rows_E: of each pair, among all rows.
        tokens_E: that this row may have.
    """

    rows_E: Tensor
    tokens_E: Tensor

    def add_to(self, logits_RB: Tensor, start: int, first: int) -> None:
        """See :meth:`bgrpo.decoding.token_mask.Penalties.add_to`."""
        rows_E, tokens_E = self.rows_E - first, self.tokens_E - start
        there_E = (rows_E >= 0) & (rows_E < logits_RB.shape[0]) & (tokens_E >= 0) & (tokens_E < logits_RB.shape[1])
        others_RB = torch.ones_like(logits_RB, dtype=torch.bool)
        others_RB[rows_E[there_E], tokens_E[there_E]] = False
        logits_RB.masked_fill_(others_RB, -torch.inf)
