"""What a group drawn without replacement says about the expected reward: weights of its completions.

Letters: K completions of a group, N places of the numerical integral.
"""

from __future__ import annotations

import numpy as np

_PLACES = 1024

LEAST_REST = 1e-6
"""Probability of what was not drawn, below which all counts as drawn: fp32 log-probabilities know no less."""


def inclusion_weights(logprobs_K: np.ndarray, kappa: float | None) -> np.ndarray:
    """Weights w_k proportional to p_k / q_k, with a sum of 1 (Kool et al. 2019, section 4.2).

    q_k = 1 - exp(-exp(log p_k - kappa)) is the probability that a completion's key is above ``kappa``. Without
    ``kappa`` all that exist were drawn: q is 1.
    """
    logs_K = logprobs_K.copy()
    if kappa is not None:
        logs_K -= _log_not_none(logprobs_K - kappa)
    weights_K = np.exp(logs_K - logs_K.max(initial=-np.inf))
    return weights_K / weights_K.sum()


def set_advantages(rewards_K: np.ndarray, logprobs_K: np.ndarray, rest: float) -> np.ndarray:
    """p_k R_k (r_k - b_k): the unordered set estimator with its built-in baseline (Kool et al. 2020, section 4).

    Summed with the gradients of the log-probabilities it is an unbiased estimate of the gradient of the expected
    reward. R_k = P(S without k, drawn where k does not exist) / P(S) is the leave-one-out ratio of the set S drawn;
    b_k is the same estimate of the expected reward, from S without k and from k itself.

    Args:
        rewards_K: of S.
        logprobs_K: of S.
        rest: probability of all that was not drawn. Where nothing is left, the gradient itself is known.
    """
    probabilities_K = np.exp(logprobs_K)
    if rest < LEAST_REST:
        return probabilities_K * (rewards_K - inclusion_weights(logprobs_K, None) @ rewards_K)
    single_K, pairs_KK, whole = _sets_without(logprobs_K, rest)
    baseline_K = probabilities_K * rewards_K + pairs_KK @ rewards_K / single_K
    if len(rewards_K) == 1:  # nothing is left to estimate it from
        baseline_K[:] = 0
    return single_K / whole * (rewards_K - baseline_K)


def _sets_without(logprobs_K: np.ndarray, rest: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Up to one factor, p_k P(S without k), p_k p_j P(S without k and j) with zeros where k = j, and P(S).

    P(S) = rest times the integral over x > 0 of exp(-rest x) prod_k (1 - exp(-p_k x)) (ibid., appendix B, with u =
    exp(-x)); what S is without leaves its factor out. By the trapezoid rule in log x, which converges exponentially
    here. Each factor is divided by its p_k, so that nothing underflows where that is tiny.
    """
    logx_N = np.linspace(-40.0, np.log(800.0 / rest), _PLACES)
    factors_NK = _log_not_none(logprobs_K + logx_N[:, None]) - logprobs_K
    logs_N = logx_N - rest * np.exp(logx_N) + factors_NK.sum(1)
    density_N = np.exp(logs_N - logs_N.max())
    without_NK = np.exp(-factors_NK)
    pairs_KK = (without_NK * density_N[:, None]).T @ without_NK
    np.fill_diagonal(pairs_KK, 0.0)
    return density_N @ without_NK, pairs_KK, float(density_N.sum())


def _log_not_none(logits: np.ndarray) -> np.ndarray:
    """log(1 - exp(-exp(x))), to full precision."""
    with np.errstate(divide="ignore", over="ignore"):  # of no effect: exp(-inf) is 0, and -inf is not taken
        rates = np.exp(logits)
        return np.where(logits < -30, logits, np.log(-np.expm1(-rates)))
