"""The policy that decoded against the learner's at the start of a step: importance weights, bounded, and their figures.

They differ where rollouts are decoded in bf16, by older weights, or drawn from a part of the distribution. TRL's loss
multiplies each token's term by the weight (Truncated importance sampling: Yao et al. 2025; masked, as IcePop: Ring-1T
2025).

Shape letters as in :mod:`bgrpo.learning.packing`; R is C for ratios of tokens, 1 for ratios of completions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bgrpo.config.loss import RolloutCorrectionSection
from bgrpo.learning.kl import divergence
from bgrpo.learning.padded_rows import LaidOutGroups

_BOUND = 20.0
"""Of a log ratio, so that a product over a long completion stays a number."""


def laid_out(values: Iterable[Sequence[float]], packed: LaidOutGroups) -> Tensor:
    """Numbers of completion tokens, one list per completion, as ``packed.tokens_BC``; 0 outside the completions."""
    flat = [value for completion in values for value in completion]
    values_BC = torch.zeros(packed.tokens_BC.shape, dtype=torch.float32)
    if flat:  # an empty cut is masked tokens alone
        values_BC[packed.mask_BC.cpu()] = torch.tensor(flat, dtype=torch.float32)
    return values_BC.to(packed.tokens_BC.device)


class RolloutCorrection:
    """Weights of one step's completions, and what is known of the ratios behind them.

    Args:
        section: how ratios are bounded.
    """

    def __init__(self, section: RolloutCorrectionSection) -> None:
        self._section = section
        self._sums = torch.zeros(7, dtype=torch.float64)
        self._largest = torch.zeros(1, dtype=torch.float64)

    def weights(self, learner_BC: Tensor, rollout_BC: Tensor, mask_BC: Tensor) -> Tensor:
        """``weights_BR`` from both log-probabilities; 1 outside the completions."""
        log_ratio_BR = (learner_BC - rollout_BC) * mask_BC
        counted_BR = mask_BC.bool()
        if self._section.level == "sequence":
            log_ratio_BR, counted_BR = log_ratio_BR.sum(1, keepdim=True), counted_BR.any(1, keepdim=True)
        ratio_BR = log_ratio_BR.clamp(-_BOUND, _BOUND).exp()
        outside_BR = (ratio_BR < self._section.low) | (ratio_BR > self._section.high)
        if self._section.kind == "mask":
            weights_BR = ratio_BR.masked_fill(outside_BR, 0.0)
        else:
            weights_BR = ratio_BR.clamp(self._section.low, self._section.high)
        kl_BC = divergence(rollout_BC, learner_BC, "k3") * mask_BC
        if counted_BR.any():
            weights = weights_BR[counted_BR]
            sums = [ratio_BR[counted_BR].sum(), outside_BR[counted_BR].sum(), counted_BR.sum(), kl_BC.sum()]
            sums += [mask_BC.sum(), weights.sum(), weights.square().sum()]
            self._sums += torch.stack([value.double() for value in sums]).cpu()
            self._largest = torch.maximum(self._largest, ratio_BR[counted_BR].max().double().cpu())
        return weights_BR

    def metrics(self, gather: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Figures over all learners: ``mismatch/ratio_mean`` and ``ratio_max`` before bounding, ``outside`` the bounds
        (a share of ratios), ``weight_mean`` and ``effective`` after it, ``kl`` of a token from the rollout's policy to
        the learner's (k3, nats). ``effective`` is the effective sample size as a share of all: (Σw)² / (n Σw²).

        Args:
            gather: stacks a tensor of all learners along its first dimension.
            device: that it gathers on.
        """
        sums = gather(self._sums[None].float().to(device)).double().sum(0).tolist()
        ratio, outside, ratios, kl, tokens, weight, square = sums
        largest = float(gather(self._largest.float().to(device)).max())
        if not ratios:
            return {}
        return {
            "mismatch/ratio_mean": ratio / ratios,
            "mismatch/ratio_max": largest,
            "mismatch/outside": outside / ratios,
            "mismatch/weight_mean": weight / ratios,
            "mismatch/effective": weight**2 / (ratios * square) if square else 0.0,
            "mismatch/kl": kl / tokens,
        }
