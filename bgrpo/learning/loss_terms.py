"""What makes TRL's loss of a micro-batch that of its share in the whole minibatch, over all learners and cuts.

TRL takes the mean over the completions or tokens of one micro-batch, and averages these means over micro-batches and
processes. Here micro-batches are of unequal size and rows are added that are masked out, so each of TRL's losses is
multiplied by a factor. Then the sum over cuts, averaged over learners as DDP does, is the loss of the minibatch.

Shape letters as in :mod:`bgrpo.learning.packing`.
"""

from __future__ import annotations

from torch import Tensor

from bgrpo.learning.batch import Minibatch

_TOKEN_MEAN = ("cispo", "dapo", "vespo")
"""Losses that TRL divides by the tokens it is told of: those of the minibatch."""
_ROW_MEAN = ("grpo", "sapo")
"""Losses that are means over completions of means over tokens."""


def loss_factor(loss: str, minibatch: Minibatch, rows: int, tokens: int, learners: int) -> float:
    """What TRL's loss of one cut is multiplied by.

    Args:
        loss: TRL's ``loss_type``.
        minibatch: that the cut is of.
        rows: completion rows B of this learner's cut, those masked out included.
        tokens: completion tokens of this learner's cut.
        learners: how many there are.
    """
    if loss in _TOKEN_MEAN:
        return 1.0
    share, whole = (tokens, minibatch.tokens) if loss == "bnpo" else (rows, minibatch.rows)
    return share * learners * len(minibatch.micro_batches) / max(whole, 1)


def token_weights(loss: str, minibatch: Minibatch, mask_BC: Tensor, max_new_tokens: int) -> Tensor:
    """What each token's term counts in the loss of the minibatch, ``weights_BC``; 0 outside the completions."""
    if loss in (*_TOKEN_MEAN, "bnpo"):
        return mask_BC / max(minibatch.tokens, 1)
    if loss in _ROW_MEAN:
        return mask_BC / mask_BC.sum(1, keepdim=True).clamp(min=1) / max(minibatch.rows, 1)
    return mask_BC / (max(minibatch.rows, 1) * (max_new_tokens if loss == "dr_grpo" else 1))


def entropy_weight(weight: float, factor: float, minibatch: Minibatch, active: int, of: int, learners: int) -> float:
    """TRL's ``entropy_coef`` for one cut, such that ``weight`` times the minibatch's mean entropy is added.

    Args:
        weight: ``learner.entropy_coef``.
        factor: that the loss is multiplied by afterwards, see :func:`loss_factor`.
        minibatch: that the cut is of.
        active: tokens of this learner's cut whose entropy counts.
        of: such tokens of the minibatch, over all learners.
        learners: how many there are.
    """
    if not active:
        return 0.0
    return weight * active * learners * len(minibatch.micro_batches) / (of * factor)
