"""One step of exact beam search. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, Slots


class BeamChooser:
    """The K best of all completions that have ended and all extensions of those that have not.

    A completion that has ended competes with its score as it is. Equal scores are kept or dropped by a fixed rule of
    ``torch.topk``, the same whenever the same tensors are compared.

    Args:
        width: K, beams per prompt.
        eos_token_id: ends a completion.
    """

    def __init__(self, width: int, eos_token_id: int) -> None:
        self._width = width
        self._eos = eos_token_id

    def choose(self, logits_GSV: Tensor, slots: Slots) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        rows, vocabulary = logits_GSV.shape[1:]
        fan = min(self._width, vocabulary)  # the K best overall are among the K best of each row
        logps_GSF, tokens_GSF = logits_GSV.log_softmax(-1).topk(fan, dim=-1)
        extended_GSF = slots.scores_GW[:, :rows, None] + logps_GSF
        extended_GSF = extended_GSF.masked_fill(~slots.live_GW[:, :rows, None], -torch.inf)
        ended_GW = slots.scores_GW.masked_fill(slots.live_GW, -torch.inf)
        candidates_GC = torch.cat([extended_GSF.flatten(1), ended_GW], 1)
        scores_GK, picks_GK = candidates_GC.topk(min(self._width, candidates_GC.shape[1]), dim=-1)
        tokens_GC = torch.cat([tokens_GSF.flatten(1), torch.full_like(slots.tokens_GW, NO_TOKEN)], 1)
        logps_GC = torch.cat([logps_GSF.flatten(1), torch.zeros_like(slots.logps_GW)], 1)
        tokens_GK = tokens_GC.gather(1, picks_GK)
        return Slots(
            parents_GW=torch.where(picks_GK < rows * fan, picks_GK // fan, picks_GK - rows * fan),
            tokens_GW=tokens_GK,
            logps_GW=logps_GC.gather(1, picks_GK),
            scores_GW=scores_GK,
            live_GW=(tokens_GK != NO_TOKEN) & (tokens_GK != self._eos) & (scores_GK > -torch.inf),
        ).live_first()

    def keep(self, prompts: Tensor) -> None:
        """A step of beam search depends on nothing but the slots."""
