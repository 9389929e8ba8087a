"""One step of sampling, each prompt from its own random stream. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, Slots


def uniform_streams(seeds: Sequence[int], samples: int, steps: int) -> Tensor:
    """Uniform numbers in [0, 1), fp64 [G, K, T]; those of a prompt are a function of its seed, K and T only.

    Counter-based (Philox, Salmon et al. 2011), so that neighbouring seeds give independent streams.
    """
    streams = [np.random.Generator(np.random.Philox(key=seed)).random((samples, steps)) for seed in seeds]
    return torch.from_numpy(np.stack(streams))


def draw_tokens(logits_GSV: Tensor, uniforms_GS: Tensor, temperature: float) -> Tensor:
    """The tokens where the cumulative distribution passes the uniform numbers (inverse-CDF sampling, in fp64)."""
    cumulative_GSV = (logits_GSV.double() / temperature).softmax(-1).cumsum(-1)
    thresholds_GS1 = (uniforms_GS * cumulative_GSV[..., -1])[..., None]
    tokens_GS = torch.searchsorted(cumulative_GSV, thresholds_GS1, right=True).squeeze(-1)
    return tokens_GS.clamp_(max=logits_GSV.shape[-1] - 1)


class SampleChooser:
    """Extends every live slot by one token drawn from the model's distribution.

    Slots start in draw order and are moved so that live ones come first; each keeps its own row of the stream.

    Args:
        uniforms_GKT: from :func:`uniform_streams`, on the device of the logits.
        eos_token_id: ends a completion.
        temperature: divides the logits.
    """

    def __init__(self, uniforms_GKT: Tensor, eos_token_id: int, temperature: float) -> None:
        self._uniforms_GKT = uniforms_GKT
        self._eos = eos_token_id
        self._temperature = temperature
        self._step = 0
        groups, samples, _ = uniforms_GKT.shape
        self._draws_GK = torch.arange(samples, device=uniforms_GKT.device).expand(groups, -1)

    def choose(self, logits_GSV: Tensor, slots: Slots) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`. The first step's slots stay in draw order."""
        uniforms_GK = self._uniforms_GKT[:, :, self._step].gather(1, self._draws_GK)
        self._step += 1
        if self._step == 1:
            from_root_GK = torch.zeros_like(self._draws_GK)
            logits_GKV = logits_GSV.expand(-1, uniforms_GK.shape[1], -1)
            return self._extend(logits_GKV, uniforms_GK, slots.take(from_root_GK), from_root_GK)
        places_GK = torch.arange(uniforms_GK.shape[1], device=uniforms_GK.device).expand_as(uniforms_GK)
        extended = self._extend(logits_GSV, uniforms_GK, slots, places_GK).live_first()
        self._draws_GK = self._draws_GK.gather(1, extended.parents_GW)
        return extended

    def keep(self, prompts: Tensor) -> None:
        """See :meth:`bgrpo.decoding.slots.Chooser.keep`."""
        self._uniforms_GKT = self._uniforms_GKT[prompts]
        self._draws_GK = self._draws_GK[prompts]

    def _extend(self, logits_GSV: Tensor, uniforms_GK: Tensor, slots: Slots, parents_GK: Tensor) -> Slots:
        rows = logits_GSV.shape[1]
        drawn_GS = draw_tokens(logits_GSV, uniforms_GK[:, :rows], self._temperature)
        drawn_logps_GS = logits_GSV.log_softmax(-1).gather(-1, drawn_GS[..., None]).squeeze(-1)
        live_GS = slots.live_GW[:, :rows]
        tokens_GK = torch.full_like(slots.tokens_GW, NO_TOKEN)
        tokens_GK[:, :rows] = drawn_GS.where(live_GS, NO_TOKEN)
        logps_GK = torch.zeros_like(slots.logps_GW)
        logps_GK[:, :rows] = drawn_logps_GS.where(live_GS, 0.0)
        live_GK = slots.live_GW & (tokens_GK != self._eos)
        return Slots(parents_GK, tokens_GK, logps_GK, slots.scores_GW + logps_GK, live_GK)
