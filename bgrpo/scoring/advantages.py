"""From rewards to advantages. Groups may be ragged (fewer beams than asked for); every result is finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from bgrpo.config.rewards import OF_TOKENS, AdvantageKind
from bgrpo.errors import UserError
from bgrpo.scoring.pass_at_k import pass_at_k_advantages
from bgrpo.scoring.without_replacement import inclusion_weights, set_advantages

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as TRL does."""

KINDS: tuple[str, ...] = tuple(kind for kind in get_args(AdvantageKind) if kind not in OF_TOKENS)
"""Those of whole completions; for tokens see ``bgrpo.scoring.siblings``."""


def advantages(
    rewards: Sequence[Sequence[float | None]],
    logprobs: Sequence[Sequence[float]],
    kind: str,
    alpha: float = 1.0,
    kappas: Sequence[float | None] | None = None,
    k: int = 1,
) -> list[list[float]]:
    """Advantages of a batch of groups.

    Args:
        rewards: one list per group; None for a completion that could not be scored, whose advantage is 0 and which
            counts in no mean, deviation or weight.
        logprobs: summed log-probability of each completion, same shape; read by the kinds that weigh only.
        kind: ``mean`` r - mean(r); ``std`` the same over the group's standard deviation (n - 1, plus
            :data:`STD_EPSILON`; the deviation of a single completion is 0); ``batch`` the same over the standard
            deviation of all rewards of the batch; ``none`` r; ``leave_one_out`` r_k minus the mean of the others
            (0 for a single completion: there is nothing to compare with); ``pass_at_k`` for the best of ``k``, see
            ``bgrpo.scoring.pass_at_k.pass_at_k_advantages``; ``probability_weighted``
            K w_k (r_k - sum_j w_j r_j) with w = softmax(alpha logprob), the gradient of the expected reward over the
            group (minimum-risk training, Shen et al. 2016). Of groups drawn without replacement:
            ``importance_weighted``, the same with the weights of
            ``bgrpo.scoring.without_replacement.inclusion_weights``; ``set_estimator``, K times
            ``bgrpo.scoring.without_replacement.set_advantages``: no bias, and not 0 where all rewards are equal.
        alpha: sharpness of ``probability_weighted``.
        kappas: of each group, see ``kappa`` of :class:`bgrpo.groups.Group`; without them all that exist were drawn.
        k: of ``pass_at_k``.

    Raises:
        UserError: unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"advantage.kind={kind!r}: expected one of {', '.join(KINDS)}")
    known = [[i for i, reward in enumerate(group) if reward is not None] for group in rewards]
    values = [np.array([group[i] for i in there], np.float64) for group, there in zip(rewards, known, strict=True)]
    if kind == "batch":
        scale = _deviation(np.concatenate(values) if values else np.zeros(0)) + STD_EPSILON
        found = [_centred(group) / scale for group in values]
    elif kind == "pass_at_k":
        found = [pass_at_k_advantages(group, k) for group in values]
    else:
        likely = [np.array([of[i] for i in there], np.float64) for of, there in zip(logprobs, known, strict=True)]
        bounds = kappas or [None] * len(likely)
        if kind == "set_estimator":
            rests = [0.0 if kappa is None else 1 - _total(of) for of, kappa in zip(logprobs, bounds, strict=True)]
            found = [len(of[0]) * set_advantages(*of) for of in zip(values, likely, rests, strict=True)]
        elif kind == "importance_weighted":
            weights = [inclusion_weights(*pair) for pair in zip(likely, bounds, strict=True)]
            found = [_weighted(*pair) for pair in zip(values, weights, strict=True)]
        elif kind == "probability_weighted":
            weights = [inclusion_weights(alpha * of, None) for of in likely]
            found = [_weighted(*pair) for pair in zip(values, weights, strict=True)]
        else:
            found = [_group_advantages(of, kind) for of in values]
    result = []
    for group, there, advantages_K in zip(rewards, known, found, strict=True):
        row = [0.0] * len(group)
        for i, value in zip(there, advantages_K.tolist(), strict=True):
            row[i] = value
        result.append(row)
    return result


def is_informative(rewards: Sequence[float | None], kind: str = "mean", k: int = 1) -> bool:
    """Whether a group teaches anything: those of its rewards that are known are not all equal.

    Without a baseline that makes them 0 (``none``, ``set_estimator``) equal rewards teach too, unless they are all 0.
    For the best of ``k`` (``pass_at_k``) so many must be below the best: else it is in any k of them.
    """
    known = [reward for reward in rewards if reward is not None]
    if kind in ("none", "set_estimator"):
        return any(reward != 0 for reward in known)
    if kind == "pass_at_k":
        return len(known) > 1 and sum(reward < max(known) for reward in known) >= min(k, len(known) - 1)
    return any(reward != known[0] for reward in known)


def _group_advantages(rewards_K: np.ndarray, kind: str) -> np.ndarray:
    if kind == "none":
        return rewards_K
    if kind == "std":
        return _centred(rewards_K) / (_deviation(rewards_K) + STD_EPSILON)
    size = len(rewards_K)
    return _centred(rewards_K) * (size / max(size - 1, 1) if kind == "leave_one_out" else 1.0)


def _weighted(rewards_K: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """K w_k (r_k - sum_j w_j r_j), exactly 0 where all are equal."""
    if not len(rewards_K) or np.ptp(rewards_K) == 0:
        return np.zeros_like(rewards_K)
    return len(rewards_K) * weights_K * (rewards_K - (weights_K * rewards_K).sum())


def _total(logprobs: Sequence[float]) -> float:
    """Probability of all of them."""
    return float(np.exp(np.array(logprobs, np.float64)).sum())


def _centred(values: np.ndarray) -> np.ndarray:
    """r - mean(r), exactly 0 where all are equal: Adam would turn the rounding of their mean into full steps."""
    return values - values.mean() if len(values) and np.ptp(values) > 0 else np.zeros_like(values)


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
