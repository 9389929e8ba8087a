"""One step of diverse beam search (Vijayakumar et al. 2018), with its Hamming diversity.

The K beams are in D groups, which choose one after the other. A group's hypothesis loses ``strength`` for every beam of
an earlier group that has the same token at the same place; what it has lost counts in all later steps. Groups may go
the same way for a while, but a completion that an earlier group ended in this step is not ended again, so that those
that end are distinct.

Shape letters as in :mod:`bgrpo.decoding.slots`; W beams of a group, P beams of the groups before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, RowLogits, Rows, Slots, goes_on
from bgrpo.decoding.token_mask import ForbiddenTokens


class DiverseBeamChooser:
    """Serves one batch. Each group has W = K / D slots side by side.

    Args:
        prompts: G.
        group_size: K.
        beam_groups: D, a divisor of K.
        strength: in nats.
        end_tokens: each ends a completion; of those that differ in it only, the most probable one competes.
        device: of the logits.
        forbidden: tokens that no completion goes on with; None: none.
    """

    waits = False

    def __init__(
        self,
        prompts: int,
        group_size: int,
        beam_groups: int,
        strength: float,
        end_tokens: Sequence[int],
        device: torch.device,
        forbidden: ForbiddenTokens | None = None,
    ) -> None:
        self.roots = group_size
        self._width = group_size // beam_groups
        self._strength = strength
        self._end_tokens = end_tokens
        self._forbidden = forbidden
        # log-probability less what was lost; one empty completion for each group
        first_K = torch.arange(group_size, device=device) % self._width == 0
        self._values_GK = torch.zeros(prompts, group_size, dtype=torch.float64, device=device)
        self._values_GK[:, ~first_K] = -torch.inf
        # of the slots that hold the same completion so far, the first
        self._same_GK = torch.zeros(prompts, group_size, dtype=torch.long, device=device)

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        if self._forbidden is not None:
            logits = logits.under(self._forbidden.at(step))
        (prompts, size), width = slots.live_GK.shape, self._width
        # earlier groups lower K - W tokens at most, so the W best of a row are among its K likeliest
        fan = min(size + len(self._end_tokens) - 1, logits.vocabulary)
        logps_RF, tokens_RF = logits.best(fan, len(rows.flat_R))
        ends_RF = ~goes_on(tokens_RF, self._end_tokens)
        logps_RF = logps_RF.masked_fill(ends_RF & (ends_RF.cumsum(1) > 1), -torch.inf)
        logps_GKF = logps_RF.new_full((prompts, size, fan), -torch.inf)
        tokens_GKF = torch.full((prompts, size, fan), NO_TOKEN, dtype=torch.long, device=tokens_RF.device)
        logps_GKF[rows.prompt_R, rows.slot_R], tokens_GKF[rows.prompt_R, rows.slot_R] = logps_RF, tokens_RF
        logps_GKF.masked_fill_(~slots.live_GK[:, :, None], -torch.inf)
        stay_GK = self._values_GK.masked_fill(slots.live_GK, -torch.inf)
        # what a hypothesis becomes: the same number for the same completion
        kinds_GKF = self._same_GK[:, :, None] * (logits.vocabulary + 1) + tokens_GKF + 1
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, size, width):
            own = slice(start, start + width)
            values_GWF = self._values_GK[:, own, None] + logps_GKF[:, own]
            if parts:
                taken_GP, kinds_GP = (torch.cat([part[place] for part in parts], 1) for place in (2, 3))
                again_GWF = (tokens_GKF[:, own, :, None] == taken_GP[:, None, None]).sum(-1)
                values_GWF = values_GWF - self._strength * again_GWF
                ended_GWF = ~goes_on(tokens_GKF[:, own], self._end_tokens)
                same_GWF = (kinds_GKF[:, own, :, None] == kinds_GP[:, None, None]).any(-1)
                values_GWF = values_GWF.masked_fill(ended_GWF & same_GWF, -torch.inf)
            parts.append(
                _best(values_GWF, stay_GK[:, own], logps_GKF[:, own], tokens_GKF[:, own], kinds_GKF[:, own], start)
            )
        values_GK, parents_GK, tokens_GK, kinds_GK, logps_GK = (torch.cat(of, 1) for of in zip(*parts, strict=True))
        self._values_GK.copy_(values_GK)  # in their memory: steps may be recorded and replayed
        self._same_GK.copy_((kinds_GK[:, :, None] == kinds_GK[:, None]).int().argmax(2))
        there_GK, extended_GK = values_GK > -torch.inf, tokens_GK != NO_TOKEN
        scores_GK = slots.scores_GK.gather(1, parents_GK) + logps_GK
        return Slots(
            parents_GK=parents_GK,
            tokens_GK=tokens_GK,
            logps_GK=logps_GK,
            scores_GK=scores_GK.masked_fill(~there_GK, -torch.inf),
            live_GK=extended_GK & goes_on(tokens_GK, self._end_tokens),
        )


def _best(
    values_GWF: Tensor, stay_GW: Tensor, logps_GWF: Tensor, tokens_GWF: Tensor, kinds_GWF: Tensor, start: int
) -> tuple[Tensor, ...]:
    """The W best of a group's extensions and of what has ended: values, parents, tokens, kinds, log-probabilities."""
    prompts, width, fan = values_GWF.shape
    own_W = torch.arange(width, device=stay_GW.device)
    # what has ended, and what is not there, is of no kind that an extension could be, nor of another one's
    others_GW = -1 - (start + own_W).expand(prompts, -1)
    best_GW, picks_GW = torch.cat((values_GWF.flatten(1), stay_GW), 1).topk(width, dim=1)
    parents_GW = start + torch.cat((own_W.repeat_interleave(fan), own_W))[picks_GW]
    extends_GW = (picks_GW < width * fan) & (best_GW > -torch.inf)
    places_GW = picks_GW.clamp(max=width * fan - 1)
    tokens_GW, kinds_GW, logps_GW = (of.flatten(1).gather(1, places_GW) for of in (tokens_GWF, kinds_GWF, logps_GWF))
    return (
        best_GW,
        parents_GW,
        tokens_GW.where(extends_GW, NO_TOKEN),
        kinds_GW.where(extends_GW, others_GW),
        logps_GW.where(extends_GW, 0.0),
    )
