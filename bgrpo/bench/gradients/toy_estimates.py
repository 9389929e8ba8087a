"""Advantages on a policy so small that its gradient is known: bias and spread of what each of them estimates.

The policy is a softmax over a few completions; the gradient is that of the expected reward by its logits. An estimate
is what the loss makes of one group, the mean over its completions of advantage times gradient of the log-probability.
Estimates are multiplied by the factor that fits their mean to the gradient best: a learning rate would do the same.

Shape letters: N completions that exist, K of a group, M groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bgrpo.scoring.advantages import advantages

Groups = tuple[np.ndarray, list[float | None]]
"""Completions of each group, [M, K], and the groups' thresholds."""


@dataclass(frozen=True, slots=True)
class Toy:
    """A policy and its rewards.

    Attributes:
        logps_N: of all completions.
        rewards_N: of them.
    """

    logps_N: np.ndarray
    rewards_N: np.ndarray

    @property
    def gradient_N(self) -> np.ndarray:
        """Of the expected reward."""
        chances_N = np.exp(self.logps_N)
        return chances_N * (self.rewards_N - chances_N @ self.rewards_N)


@dataclass(frozen=True, slots=True)
class Estimator:
    """A kind of group, and an advantage.

    Attributes:
        name: for people.
        draw: makes groups of K completions.
        kind: ``advantage.kind``.
        has_bias: whether it is expected to have one.
    """

    name: str
    draw: Callable[[Toy, int, int, np.random.Generator], Groups]
    kind: str
    has_bias: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """Of an estimator, relative to the size of the gradient.

    Attributes:
        bias: distance between the gradient and the mean estimate, without what chance adds to it.
        error: what chance alone makes of that distance, for so many groups.
        spread: root of the total variance of one group's estimate.
    """

    bias: float
    error: float
    spread: float


def long_tail() -> Toy:
    """Forty completions: some likely, many unlikely; the favourite is wrong, one in five is right."""
    logps_N = -0.3 * np.arange(40.0)
    return Toy(logps_N - np.log(np.exp(logps_N).sum()), (np.arange(40) % 5 == 1).astype(float))


def samples(toy: Toy, size: int, count: int, rng: np.random.Generator) -> Groups:
    """Independent ones."""
    return rng.choice(len(toy.logps_N), (count, size), p=np.exp(toy.logps_N)), [None] * count


def beams(toy: Toy, size: int, count: int, rng: np.random.Generator) -> Groups:
    """The most probable ones, the same each time."""
    return np.argsort(-toy.logps_N, kind="stable")[None, :size], [None]


def stochastic_beams(toy: Toy, size: int, count: int, rng: np.random.Generator) -> Groups:
    """Distinct ones, without replacement."""
    keys_MN = toy.logps_N + rng.gumbel(size=(count, len(toy.logps_N)))
    order_MN = np.argsort(-keys_MN, axis=1)
    kappas = np.take_along_axis(keys_MN, order_MN[:, size : size + 1], 1)[:, 0]
    return order_MN[:, :size], kappas.tolist()


ESTIMATORS = (
    Estimator("samples, leave_one_out", samples, "leave_one_out", False),
    Estimator("samples, std (GRPO)", samples, "std", True),
    Estimator("beams, mean", beams, "mean", True),
    Estimator("beams, probability_weighted", beams, "probability_weighted", True),
    Estimator("stochastic beams, importance_weighted", stochastic_beams, "importance_weighted", True),
    Estimator("stochastic beams, set_estimator", stochastic_beams, "set_estimator", False),
)


def estimates(toy: Toy, estimator: Estimator, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Of the gradient, one per group, [M, N]; of deterministic groups there is one."""
    chosen_MK, kappas = estimator.draw(toy, size, count, rng)
    rewards, logps = toy.rewards_N[chosen_MK].tolist(), toy.logps_N[chosen_MK].tolist()
    values_MK = np.array(advantages(rewards, logps, estimator.kind, kappas=kappas)) / size
    found_MN = -values_MK.sum(1, keepdims=True) * np.exp(toy.logps_N)
    np.add.at(found_MN, (np.arange(len(chosen_MK))[:, None], chosen_MK), values_MK)
    return found_MN


def quality(toy: Toy, estimator: Estimator, size: int, count: int, seed: int = 0) -> Quality:
    """Bias and spread, from ``count`` groups of ``size`` completions."""
    found_MN = estimates(toy, estimator, size, count, np.random.default_rng(seed))
    mean_N, exact_N = found_MN.mean(0), toy.gradient_N
    factor = float(mean_N @ exact_N / max(mean_N @ mean_N, 1e-300))
    length = float(np.linalg.norm(exact_N))
    spread = abs(factor) * float(np.sqrt(found_MN.var(0).sum())) / length
    error = spread / math.sqrt(len(found_MN))
    distance = float(np.linalg.norm(factor * mean_N - exact_N)) / length
    return Quality(math.sqrt(max(distance**2 - error**2, 0.0)), error, spread)
