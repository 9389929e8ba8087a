"""Attention of a decoder beside an encoder: to its own path, with a bias of each distance, and apart to its prompt.

Shape letters: H heads, R rows, D head width, B distances.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bgrpo.decoding.attention_rules import AttentionRules

UNSCALED = AttentionRules(1.0)
"""Scores are products as they are."""


class AttendsApart(Protocol):
    """What stands behind the two attentions of a decoder's layers; each attention has a layer number of its own.

    Scores are products as they are, without a scale.
    """

    def attend_path(self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, bias_HB: Tensor) -> Tensor:
        """Outputs [R, H, D] of attention to each row's path; ``bias_HB`` is of each distance back."""
        ...

    def attend_prompt(self, layer: int, query_HRD: Tensor) -> Tensor:
        """Outputs [R, H, D] of attention to what was kept of each row's prompt."""
        ...


def bias_of_path(bias_HB: Tensor, depth: int | Tensor, nodes: int) -> Tensor:
    """The bias [H, nodes] of a path's nodes, from the root on, for a row that stands at its end.

    Nodes beyond the path's ``depth`` get what the last of them gets.
    """
    back_T = depth - 1 - torch.arange(nodes, device=bias_HB.device)
    return bias_HB.index_select(1, back_T.clamp_(0, bias_HB.shape[1] - 1))
