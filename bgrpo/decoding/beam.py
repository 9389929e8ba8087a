"""One step of exact beam search. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, RowLogits, Rows, Slots, goes_on
from bgrpo.decoding.token_mask import ForbiddenTokens


class BeamChooser:
    """The K best of all completions that have ended and all extensions of those that have not, best first.

    A completion that has ended competes with its score as it is. Of completions that differ in their end token only,
    which are one text, the most probable one competes. Equal scores are kept or dropped by a fixed rule of
    ``torch.topk``, the same whenever the same tensors are compared.

    Args:
        group_size: K, beams per prompt.
        end_tokens: each ends a completion.
        forbidden: tokens that no completion goes on with; None: none.
    """

    roots = 1
    waits = False

    def __init__(self, group_size: int, end_tokens: Sequence[int], forbidden: ForbiddenTokens | None = None) -> None:
        self._group_size = group_size
        self._end_tokens = end_tokens
        self._forbidden = forbidden

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        if self._forbidden is not None:
            logits = logits.under(self._forbidden.at(step))
        groups, group_size = slots.scores_GK.shape
        # the K best overall are among the K best of each row, of whose end tokens one counts
        fan = min(group_size + len(self._end_tokens) - 1, logits.vocabulary)
        logps_RF, tokens_RF = logits.best(fan, len(rows.flat_R))
        scores_R = slots.scores_GK.flatten()[rows.flat_R]
        extended_RF = (scores_R[:, None] + logps_RF).masked_fill_(
            ~slots.live_GK.flatten()[rows.flat_R, None], -torch.inf
        )
        if len(self._end_tokens) > 1:
            ends_RF = ~goes_on(tokens_RF, self._end_tokens)
            extended_RF.masked_fill_(ends_RF & (ends_RF.cumsum(1) > 1), -torch.inf)
        scores_GC = scores_R.new_full((groups, group_size * fan + group_size), -torch.inf)
        scores_GC[:, : group_size * fan].unflatten(1, (group_size, fan))[rows.prompt_R, rows.slot_R] = extended_RF
        scores_GC[:, group_size * fan :] = slots.scores_GK.masked_fill(slots.live_GK, -torch.inf)
        scores_GK, picks_GK = scores_GC.topk(group_size, dim=-1)
        extends_GK = picks_GK < group_size * fan
        parents_GK = torch.where(extends_GK, picks_GK // fan, picks_GK - group_size * fan)
        # a pick among the extensions is place (row, nth best token); rows stand in the order of flat slots
        row_GK = _rows_of_slots(rows, groups * group_size)[parents_GK + _first_slots(groups, group_size, parents_GK)]
        place_GK = row_GK * fan + picks_GK % fan
        extends_GK &= scores_GK > -torch.inf
        tokens_GK = tokens_RF.flatten()[place_GK].where(extends_GK, NO_TOKEN)
        return Slots(
            parents_GK=parents_GK,
            tokens_GK=tokens_GK,
            logps_GK=logps_RF.flatten()[place_GK].where(extends_GK, 0.0),
            scores_GK=scores_GK,
            live_GK=extends_GK & goes_on(tokens_GK, self._end_tokens),
        )


def _rows_of_slots(rows: Rows, slots: int) -> Tensor:
    """For every flat slot its row, 0 where it has none."""
    found = torch.zeros(slots, dtype=torch.long, device=rows.flat_R.device)
    found[rows.flat_R] = torch.arange(len(rows.flat_R), device=rows.flat_R.device)
    return found


def _first_slots(groups: int, group_size: int, like: Tensor) -> Tensor:
    return torch.arange(0, groups * group_size, group_size, device=like.device)[:, None]
