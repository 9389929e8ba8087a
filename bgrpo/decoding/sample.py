"""One step of sampling, each prompt from its own random stream. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, RowLogits, Rows, Slots, goes_on


def uniform_streams(seeds: Sequence[int], samples: int, steps: int) -> Tensor:
    """Uniform numbers in [0, 1), fp64 [G, K, T]; those of a prompt are a function of its seed, K and T only.

    Counter-based (Philox, Salmon et al. 2011), so that neighbouring seeds give independent streams.
    """
    streams = [np.random.Generator(np.random.Philox(key=seed)).random((samples, steps)) for seed in seeds]
    return torch.from_numpy(np.stack(streams))


def draw_tokens(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> Tensor:
    """The tokens where the cumulative distribution passes the uniform numbers (inverse-CDF sampling, in fp64)."""
    cumulative_RV = (logits_RV.double() / temperature).softmax(-1).cumsum(-1)
    thresholds_R1 = (uniforms_R * cumulative_RV[:, -1])[:, None]
    tokens_R = torch.searchsorted(cumulative_RV, thresholds_R1, right=True).squeeze(-1)
    return tokens_R.clamp_(max=logits_RV.shape[-1] - 1)


class SampleChooser:
    """Extends every live slot by one token drawn from the model's distribution; slots are in draw order and stay.

    Args:
        uniforms_GKT: from :func:`uniform_streams`, on the device of the logits.
        end_tokens: each ends a completion.
        temperature: divides the logits.
    """

    def __init__(self, uniforms_GKT: Tensor, end_tokens: Sequence[int], temperature: float) -> None:
        self.roots = uniforms_GKT.shape[1]
        self._uniforms_GKT = uniforms_GKT
        self._end_tokens = end_tokens
        self._temperature = temperature

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        uniforms_R = self._uniforms_GKT.index_select(2, step.view(1)).flatten()[rows.flat_R]

        def draw(logits_RV: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
            drawn_R = draw_tokens(logits_RV, uniforms_R[piece], self._temperature)
            tempered_RV = logits_RV / self._temperature
            return drawn_R, tempered_RV.log_softmax(-1).gather(-1, drawn_R[:, None]).squeeze(1)

        drawn_R, logps_R = logits.map(draw, len(rows.flat_R))
        live_R = slots.live_GK.flatten()[rows.flat_R]
        tokens_GK = torch.full_like(slots.parents_GK, NO_TOKEN)
        tokens_GK.view(-1)[rows.flat_R] = drawn_R.where(live_R, NO_TOKEN)
        logps_GK = torch.zeros_like(slots.logps_GK)
        logps_GK.view(-1)[rows.flat_R] = logps_R.where(live_R, 0.0)
        own_GK = torch.arange(self.roots, device=tokens_GK.device).expand_as(tokens_GK)
        live_GK = slots.live_GK & goes_on(tokens_GK, self._end_tokens)
        return Slots(own_GK, tokens_GK, logps_GK, slots.scores_GK + logps_GK, live_GK)
