"""One step of sampling, each prompt from its own random stream. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bgrpo.decoding.slots import NO_TOKEN, RowLogits, Rows, Slots, goes_on
from bgrpo.decoding.token_mask import ForbiddenTokens
from bgrpo.decoding.truncation import Truncation


def uniform_streams(seeds: Sequence[int], samples: int, steps: int) -> Tensor:
    """Uniform numbers in [0, 1), fp64 [G, K, T]; those of a prompt are a function of its seed, K and T only.

    Counter-based (Philox, Salmon et al. 2011), so that neighbouring seeds give independent streams.
    """
    streams = [np.random.Generator(np.random.Philox(key=seed)).random((samples, steps)) for seed in seeds]
    return torch.from_numpy(np.stack(streams))


_BLOCK = 256
_FEW_TOKENS = 1024  # vocabularies up to here are passed through at once
_BELOW_ONE = 1 - 2.0**-52


def draw_tokens(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The tokens where the cumulative distribution passes the uniform numbers (inverse-CDF sampling), and their
    log-probabilities (fp32); a token that is drawn has a probability above 0.

    Sums are fp64. Of a large vocabulary the sums of blocks are passed first, then the one block's tokens: a tenth of
    the time of fp64 probabilities of all.
    """
    if logits_RV.shape[1] > _FEW_TOKENS:
        return _draw_by_blocks(logits_RV, uniforms_R, temperature)
    probabilities_RV = _tempered(logits_RV, temperature).softmax(-1)
    drawn_R = _pass(probabilities_RV, uniforms_R)
    return drawn_R, probabilities_RV.gather(1, drawn_R[:, None]).squeeze(1).log().float()


def _draw_by_blocks(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Shape letters: N blocks of B tokens; clamps keep places in range where logits are not numbers."""
    (rows, vocabulary), blocks = logits_RV.shape, -(-logits_RV.shape[1] // _BLOCK)
    largest_R1 = logits_RV.amax(-1, keepdim=True)
    weights_RV = logits_RV - largest_R1
    if temperature != 1:
        weights_RV /= temperature
    weights_RV = functional.pad(weights_RV.exp_(), (0, blocks * _BLOCK - vocabulary))
    sums_RN = weights_RV.view(rows, blocks, _BLOCK).sum(-1, dtype=torch.float64)
    passed_RN = sums_RN.cumsum(-1)
    total_R1 = passed_RN[:, -1:]
    wanted_R1 = torch.minimum(uniforms_R[:, None] * total_R1, total_R1 * _BELOW_ONE)
    block_R1 = torch.searchsorted(passed_RN, wanted_R1, right=True).clamp_(max=blocks - 1)
    within_R1 = wanted_R1 - (passed_RN - sums_RN).gather(1, block_R1)
    places_RB = block_R1 * _BLOCK + torch.arange(_BLOCK, device=logits_RV.device)
    passed_RB = weights_RV.gather(1, places_RB).double().cumsum(-1)
    within_R1 = torch.minimum(within_R1.clamp_(min=0), passed_RB[:, -1:] * _BELOW_ONE)
    drawn_R1 = block_R1 * _BLOCK + torch.searchsorted(passed_RB, within_R1, right=True)
    drawn_R1.clamp_(max=vocabulary - 1)
    logps_R1 = (logits_RV.gather(1, drawn_R1) - largest_R1).double() / temperature - total_R1.log()
    return drawn_R1.squeeze(1), logps_R1.squeeze(1).float()


def _tempered(logits_RV: Tensor, temperature: float) -> Tensor:
    exact_RV = logits_RV.double()
    return exact_RV if temperature == 1 else exact_RV / temperature


def _pass(probabilities_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    cumulative_RV = probabilities_RV.cumsum(-1)
    thresholds_R1 = (uniforms_R * cumulative_RV[:, -1])[:, None]
    tokens_R = torch.searchsorted(cumulative_RV, thresholds_R1, right=True).squeeze(-1)
    return tokens_R.clamp_(max=probabilities_RV.shape[-1] - 1)


class SampleChooser:
    """Extends every live slot by one token drawn from the model's distribution; slots are in draw order and stay.

    Args:
        uniforms_GKT: from :func:`uniform_streams`, on the device of the logits.
        end_tokens: each ends a completion.
        temperature: divides the logits.
        forbidden: tokens that have probability 0; None: none.
    """

    waits = False

    def __init__(
        self,
        uniforms_GKT: Tensor,
        end_tokens: Sequence[int],
        temperature: float,
        forbidden: ForbiddenTokens | None = None,
    ) -> None:
        self.roots = uniforms_GKT.shape[1]
        self._uniforms_GKT = uniforms_GKT
        self._end_tokens = end_tokens
        self._temperature = temperature
        self._forbidden = forbidden

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        if self._forbidden is not None:
            logits = logits.under(self._forbidden.at(step))
        uniforms_R = rows.of_slots(self._uniforms_GKT.index_select(2, step.view(1)))
        live_R = rows.of_slots(slots.live_GK)
        drawn_R, logps_R = self._draw(logits, rows, uniforms_R, live_R, step)
        tokens_GK = torch.full_like(slots.parents_GK, NO_TOKEN)
        tokens_GK.view(-1)[rows.flat_R] = drawn_R.where(live_R, NO_TOKEN)
        logps_GK = torch.zeros_like(slots.logps_GK)
        logps_GK.view(-1)[rows.flat_R] = logps_R.where(live_R, 0.0)
        own_GK = torch.arange(self.roots, device=tokens_GK.device).expand_as(tokens_GK)
        live_GK = slots.live_GK & goes_on(tokens_GK, self._end_tokens)
        return Slots(own_GK, tokens_GK, logps_GK, slots.scores_GK + logps_GK, live_GK)

    def _draw(
        self, logits: RowLogits, rows: Rows, uniforms_R: Tensor, live_R: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens, and their log-probabilities in the whole distribution."""

        def draw(logits_RV: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
            return draw_tokens(logits_RV, uniforms_R[piece], self._temperature)

        drawn_R, logps_R = logits.map(draw, len(rows.flat_R))
        return drawn_R, logps_R


class TruncatedSampleChooser(SampleChooser):
    """Draws from a part of the distribution, and remembers how much of it that part holds.

    Args:
        uniforms_GKT: see :class:`SampleChooser`.
        end_tokens: likewise.
        temperature: likewise; divides before anything is cut off.
        forbidden: likewise.
        truncation: what is cut off.

    Attributes:
        log_kept_GKT: for each token the log of the probability of all tokens that it was drawn from (fp32), 0 where
            there is none. Its log-probability in the distribution drawn from is the whole one's less this.
    """

    def __init__(
        self,
        uniforms_GKT: Tensor,
        end_tokens: Sequence[int],
        temperature: float,
        forbidden: ForbiddenTokens | None,
        truncation: Truncation,
    ) -> None:
        super().__init__(uniforms_GKT, end_tokens, temperature, forbidden)
        self._truncation = truncation
        self.log_kept_GKT = torch.zeros_like(uniforms_GKT, dtype=torch.float32)

    def _draw(
        self, logits: RowLogits, rows: Rows, uniforms_R: Tensor, live_R: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        def draw(logits_RV: Tensor, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
            tempered_RV = _tempered(logits_RV, self._temperature)
            cut_RV = self._truncation.cut(tempered_RV)
            drawn_R = _pass(cut_RV.softmax(-1), uniforms_R[piece])
            log_total_R = tempered_RV.logsumexp(-1)
            logps_R = tempered_RV.gather(1, drawn_R[:, None]).squeeze(1) - log_total_R
            return drawn_R, logps_R.float(), (cut_RV.logsumexp(-1) - log_total_R).clamp_(max=0.0).float()

        drawn_R, logps_R, log_kept_R = logits.map(draw, len(rows.flat_R))
        log_kept_GK1 = torch.zeros_like(self.log_kept_GKT[:, :, :1])
        log_kept_GK1.view(-1)[rows.flat_R] = log_kept_R.where(live_R, 0.0)
        self.log_kept_GKT.index_copy_(2, step.view(1), log_kept_GK1)
        return drawn_R, logps_R
