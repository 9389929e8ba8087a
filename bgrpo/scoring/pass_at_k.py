"""Advantages for the best of k: what a policy is judged by that may answer k times."""

from __future__ import annotations

import numpy as np


def pass_at_k_advantages(rewards_K: np.ndarray, k: int) -> np.ndarray:
    """k times (the mean best of k completions with this one, less the mean best of k of the others).

    Means are over all such subsets of the group, in closed form. Divided by K and summed with the gradients of the
    log-probabilities of K independent samples, it is an unbiased estimate of the gradient of the expected best of k:
    Tang et al. 2025 (2503.19595) for k = K - 1 alone, Walder and Karkhanis 2025 (2505.15201) for any k. Where rewards
    are 0 and 1 it is the advantage of Chen et al. 2025 (2508.10751) without the deviation, times k / (1 - k / K).
    k = 1 is ``leave_one_out``.

    Args:
        rewards_K: of the group; of a single completion the advantage is 0.
        k: where the group has no more, K - 1 is taken.
    """
    size = len(rewards_K)
    k = min(k, size - 1)
    if k < 1 or np.ptp(rewards_K) == 0:
        return np.zeros(size)
    order_K = np.argsort(-rewards_K, kind="stable")
    best_K = rewards_K[order_K] - rewards_K.min()  # best first; only differences count
    # of the k - 1 others that join a completion, the best is the j-th of all others with this chance
    chances_J = _chances_of_best(size - 1, k - 1)
    better_K = np.concatenate(([0.0], np.cumsum(chances_J)))  # the best of them is among the first j
    others_K = np.concatenate(([0.0], np.cumsum(chances_J * best_K[:-1])))  # what it then adds
    with_K = others_K + (1 - better_K) * best_K
    mean = float(with_K.mean())  # over all subsets of k: each counts once for each of its members
    centred_K = with_K - mean
    values_K = np.empty(size)
    values_K[order_K] = k * size / (size - k) * centred_K
    return values_K if np.ptp(with_K) > 0 else np.zeros(size)


def _chances_of_best(of: int, drawn: int) -> np.ndarray:
    """Chance that the j-th best of ``of`` is the best of so many drawn without replacement; zeros if none is drawn."""
    chances_J = np.zeros(of)
    left = 1.0  # chance that none of the better ones was drawn
    for j in range(of if drawn else 0):
        chances_J[j] = left * min(drawn / (of - j), 1.0)
        left -= chances_J[j]
        if left <= 0:
            break
    return chances_J
