"""Estimates of the KL from a policy to the reference, from the tokens that the policy chose (Schulman 2020).

With d = log-probability of the reference minus that of the policy: k1 = -d, unbiased; k2 = d² / 2; k3 = e^d - d - 1,
unbiased and never negative. TRL computes k3 in its loss; what it does not compute is here.
"""

from __future__ import annotations

from torch import Tensor


def divergence(logps: Tensor, reference_logps: Tensor, estimator: str) -> Tensor:
    """One estimate for each token.

    Args:
        logps: of the policy that chose the tokens, any shape.
        reference_logps: of the reference, same shape.
        estimator: ``k1``, ``k2`` or ``k3``.
    """
    difference = reference_logps - logps
    if estimator == "k1":
        return -difference
    return difference.square() / 2 if estimator == "k2" else difference.exp() - difference - 1
