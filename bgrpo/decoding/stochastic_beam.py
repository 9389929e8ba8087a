"""One step of stochastic beam search: completions drawn without replacement (Kool et al. 2019).

Every completion of a prompt has its log-probability plus independent Gumbel noise as its key, and those with the
largest keys are a sample without replacement, in the order drawn (the Gumbel-top-k trick). The search finds them
without looking at the others: the key of a prefix is the largest of the keys of what it goes on to, and those of its
extensions are drawn so that the largest of them is just that.

Shape letters as in :mod:`bgrpo.decoding.slots`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bgrpo.decoding.beam import choose_best
from bgrpo.decoding.slots import NO_TOKEN, RowLogits, Rows, Slots, goes_on
from bgrpo.decoding.token_mask import ForbiddenTokens

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64's, as int64


def noise_streams(seeds: Sequence[int], group_size: int, steps: int) -> Tensor:
    """States that all noise of a search is made from, int64 [G, T + 1, K], those of step 0 for the empty completions.

    Those of a prompt are a function of its seed, K and T only (Philox, Salmon et al. 2011).
    """
    streams = [
        np.random.Generator(np.random.Philox(key=seed)).integers(0, 2**64, (steps + 1, group_size), np.uint64)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(streams).view(np.int64))


def gumbels(states: Tensor, count: int) -> Tensor:
    """Independent standard Gumbel noise, fp64 [..., ``count``]: a stream from each state (SplitMix64, Steele 2014)."""
    bits = states[..., None] + _GOLDEN * torch.arange(1, count + 1, device=states.device)
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    bits ^= _shifted(bits, 31)
    uniforms = _shifted(bits, 11).double().add_(0.5).mul_(2.0**-53)
    return uniforms.log_().neg_().log_().neg_()


class StochasticBeamChooser:
    """Keeps the K completions and prefixes with the largest keys of all, largest first. Serves one batch.

    Args:
        states_GTK: from :func:`noise_streams`, on the device of the logits.
        end_tokens: each ends a completion.
        temperature: divides the logits.
        forbidden: tokens that have probability 0; None: none.

    Attributes:
        keys_GK: keys of the slots after the last step (fp64), -inf where a slot holds nothing.
    """

    roots = 1
    waits = False

    def __init__(
        self,
        states_GTK: Tensor,
        end_tokens: Sequence[int],
        temperature: float,
        forbidden: ForbiddenTokens | None = None,
    ) -> None:
        self._states_GTK = states_GTK
        self._group_size = states_GTK.shape[2]
        self._end_tokens = end_tokens
        self._temperature = temperature
        self._forbidden = forbidden
        self.keys_GK = gumbels(states_GTK[:, 0], 1).squeeze(2)
        self.keys_GK[:, 1:] = -torch.inf

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        if self._forbidden is not None:
            logits = logits.under(self._forbidden.at(step))
        fan = min(self._group_size, logits.vocabulary)
        states_R = rows.of_slots(self._states_GTK.index_select(1, step.view(1) + 1))
        scores_R, keys_R = rows.of_slots(slots.scores_GK), rows.of_slots(self.keys_GK)

        def perturbed(logits_RV: Tensor, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
            logps_RV = (logits_RV.double() / self._temperature).log_softmax(-1)
            noisy_RV = gumbels(states_R[piece], logits_RV.shape[1]).add_(logps_RV)
            best_RF, tokens_RF = noisy_RV.add_(scores_R[piece, None]).topk(fan, dim=-1)
            return best_RF, tokens_RF, logps_RV.gather(1, tokens_RF)

        noisy_RF, tokens_RF, logps_RF = logits.map(perturbed, len(rows.flat_R))
        keys_RF = _below(keys_R[:, None], noisy_RF)
        chosen = choose_best(keys_RF, self.keys_GK, rows, slots.live_GK)
        self.keys_GK.copy_(chosen.values_GK)
        tokens_GK = tokens_RF.flatten()[chosen.places_GK].where(chosen.extends_GK, NO_TOKEN)
        logps_GK = logps_RF.flatten()[chosen.places_GK].where(chosen.extends_GK, 0.0)
        scores_GK = (slots.scores_GK.gather(1, chosen.parents_GK) + logps_GK).masked_fill_(
            self.keys_GK == -torch.inf, -torch.inf
        )
        return Slots(
            parents_GK=chosen.parents_GK,
            tokens_GK=tokens_GK,
            logps_GK=logps_GK.float(),
            scores_GK=scores_GK,
            live_GK=chosen.extends_GK & goes_on(tokens_GK, self._end_tokens),
        )


def _below(keys_R1: Tensor, noisy_RF: Tensor) -> Tensor:
    """Perturbed log-probabilities, largest first, given that the largest of them is the key of what they extend.

    Gumbel variables with their maximum given, Kool et al. 2019, appendix B.3, in the form that loses no digits.
    """
    gaps_RF = noisy_RF - noisy_RF[:, :1]
    excess_RF = keys_R1 - noisy_RF + torch.where(gaps_RF > -0.7, (-gaps_RF.expm1()).log(), (-gaps_RF.exp()).log1p())
    return keys_R1 - excess_RF.clamp(min=0) - (-excess_RF.abs()).exp().log1p()


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Right, filled up with zeros."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
