"""From which part of a distribution samples are drawn: top_k, top_p and min_p.

Each keeps all tokens whose logit is not below a bound, so tokens of equal probability stay or go together, and what is
kept of a row does not depend on other rows. Shape letters: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CANDIDATES = 512
"""Most probable tokens among which the nucleus is looked for first: sorting a large vocabulary costs more."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """What is kept, see :class:`bgrpo.decoding.settings.DecodeSettings`; as transformers has it, in that order.

    Attributes:
        top_k: 0: all tokens.
        top_p: 1: all tokens. A token is kept where those more probable than it have less than this together.
        min_p: 0: all tokens.
    """

    top_k: int
    top_p: float
    min_p: float

    def cut(self, tempered_RV: Tensor) -> Tensor:
        """The logits, already divided by the temperature, with -inf for what is cut off; the most probable stays."""
        if 0 < self.top_k < tempered_RV.shape[1]:
            tempered_RV = _from(tempered_RV, tempered_RV.topk(self.top_k, dim=-1).values[:, -1:])
        if self.top_p < 1:
            tempered_RV = _from(tempered_RV, _nucleus(tempered_RV, self.top_p))
        if self.min_p > 0:
            tempered_RV = _from(tempered_RV, tempered_RV.amax(-1, keepdim=True) + math.log(self.min_p))
        return tempered_RV


def _from(logits_RV: Tensor, least_R1: Tensor) -> Tensor:
    return logits_RV.masked_fill(logits_RV < least_R1, -torch.inf)


def _nucleus(logits_RV: Tensor, top_p: float) -> Tensor:
    """Smallest logit of the fewest most probable tokens whose probabilities reach ``top_p``."""
    vocabulary, total_R1 = logits_RV.shape[1], logits_RV.logsumexp(-1, keepdim=True)
    # on other devices all are sorted, so that nothing waits for a value
    count = min(_CANDIDATES, vocabulary) if logits_RV.device.type == "cpu" else vocabulary
    while True:
        best_RC = logits_RV.topk(count, dim=-1).values
        probabilities_RC = (best_RC - total_R1).exp()
        kept_RC = probabilities_RC.cumsum(-1) - probabilities_RC < top_p
        if count == vocabulary or not kept_RC[:, -1].any():
            return best_RC.gather(1, kept_RC.sum(-1, keepdim=True).clamp_(min=1) - 1)
        count = min(8 * count, vocabulary)
