"""One step of exact beam search. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        # the K best overall are among the K best of each row, of whose end tokens one counts
        fan = min(self._group_size + len(self._end_tokens) - 1, logits.vocabulary)
        logps_RF, tokens_RF = logits.best(fan, len(rows.flat_R))
        extended_RF = rows.of_slots(slots.scores_GK)[:, None] + logps_RF
        if len(self._end_tokens) > 1:
            ends_RF = ~goes_on(tokens_RF, self._end_tokens)
            extended_RF.masked_fill_(ends_RF & (ends_RF.cumsum(1) > 1), -torch.inf)
        chosen = choose_best(extended_RF, slots.scores_GK, rows, slots.live_GK)
        tokens_GK = tokens_RF.flatten()[chosen.places_GK].where(chosen.extends_GK, NO_TOKEN)
        return Slots(
            parents_GK=chosen.parents_GK,
            tokens_GK=tokens_GK,
            logps_GK=logps_RF.flatten()[chosen.places_GK].where(chosen.extends_GK, 0.0),
            scores_GK=chosen.values_GK,
            live_GK=chosen.extends_GK & goes_on(tokens_GK, self._end_tokens),
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The K best of a prompt's ended hypotheses and of the extensions of its live ones, best first.

    Attributes:
        values_GK: what they were chosen by; -inf where there are fewer.
        parents_GK: slot that each goes on from, or stays as.
        places_GK: of an extension, its place among all of :func:`choose_best`'s ``values_RF``; else any.
        extends_GK: whether it is an extension.
    """

    values_GK: Tensor
    parents_GK: Tensor
    places_GK: Tensor
    extends_GK: Tensor


def choose_best(values_RF: Tensor, values_GK: Tensor, rows: Rows, live_GK: Tensor) -> Chosen:
    """The K largest of each prompt.

    Args:
        values_RF: of the F best extensions of each row; those of rows that are not live count for nothing.
        values_GK: of the slots, -inf where a slot holds nothing.
        rows: all live slots are among them.
        live_GK: slots that do not stay as they are.
    """
    (groups, group_size), fan = values_GK.shape, values_RF.shape[1]
    if rows.all_live:
        best_GK, picks_GK = values_RF.view(groups, group_size * fan).topk(group_size, dim=-1)
        places_GK = picks_GK + _first_slots(groups, group_size * fan, picks_GK)
        return Chosen(best_GK, picks_GK // fan, places_GK, best_GK > -torch.inf)
    extended_RF = values_RF.masked_fill(~live_GK.flatten()[rows.flat_R, None], -torch.inf)
    values_GC = values_GK.new_full((groups, group_size * fan + group_size), -torch.inf)
    values_GC[:, : group_size * fan].unflatten(1, (group_size, fan))[rows.prompt_R, rows.slot_R] = extended_RF
    values_GC[:, group_size * fan :] = values_GK.masked_fill(live_GK, -torch.inf)
    best_GK, picks_GK = values_GC.topk(group_size, dim=-1)
    extends_GK = picks_GK < group_size * fan
    parents_GK = torch.where(extends_GK, picks_GK // fan, picks_GK - group_size * fan)
    # a pick among the extensions is place (row, nth best token); rows stand in the order of flat slots
    row_GK = _rows_of_slots(rows, groups * group_size)[parents_GK + _first_slots(groups, group_size, parents_GK)]
    return Chosen(best_GK, parents_GK, row_GK * fan + picks_GK % fan, extends_GK & (best_GK > -torch.inf))


def _rows_of_slots(rows: Rows, slots: int) -> Tensor:
    """For every flat slot its row, 0 where it has none."""
    found = torch.zeros(slots, dtype=torch.long, device=rows.flat_R.device)
    found[rows.flat_R] = torch.arange(len(rows.flat_R), device=rows.flat_R.device)
    return found


def _first_slots(groups: int, each: int, like: Tensor) -> Tensor:
    return torch.arange(0, groups * each, each, device=like.device)[:, None]
