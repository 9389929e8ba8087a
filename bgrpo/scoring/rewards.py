"""From verdicts and ranks to rewards, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.tasks.base import Outcome

Rewards = list[float | None]
NORMAL_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as TRL does."""

LARGEST_REWARD = 1e12
"""In size. Beyond it, sums of squares leave the range of the update's float32."""

_FAILED = frozenset({Outcome.TIMEOUT, Outcome.ERROR, Outcome.UNSCORED})


@dataclass(frozen=True, slots=True)
class RewardRule:
    """How the completions of a group are rewarded.

    Attributes:
        kind: ``simple`` (the score as it is), ``rank`` (times exp(-(rank - 1) / tau)), ``reverse_rank`` (times
            exp(+(rank - 1) / tau)) or ``unlikely`` (times 1 - share × (K - rank) / K: the likeliest loses most,
            He et al. 2025).
        tau: scale of the rank kinds, in ranks.
        unlikely_share: what the likeliest completion loses with ``unlikely``.
        weights: factor of each part; None: a completion is right (score 1) or wrong, and nothing else counts.
        normalize: each part by the group's mean and deviation before it is weighted (GDPO).
        wrong_reward: of a completion that is not correct, where that is all that counts, and of one that was cut off
            and not scored.
        balance_negatives: when some but not all are correct, every other completion gets the same reward such that
            the group sums to zero.
    """

    kind: str
    tau: float
    weights: Mapping[str, float] | None = None
    normalize: bool = False
    wrong_reward: float = 0.0
    balance_negatives: bool = False
    unlikely_share: float = 0.25


def group_rewards(verdicts: Sequence[Verdict], rule: RewardRule, ranks: Sequence[int] | None = None) -> Rewards:
    """Rewards of one group's completions; None for those that failed to be scored: they are not zero, but unknown.

    A score is shaped by its distance from the group's lowest, or from 0 where none is negative, so that among negative
    scores, too, a factor below 1 costs and one above 1 pays.

    Args:
        verdicts: one per completion.
        rule: how.
        ranks: of each by its log-probability, 1 for the likeliest; default: they are in this order.

    Raises:
        UserError: a reward beyond :data:`LARGEST_REWARD`.
    """
    factors = _factors(rule, ranks or range(1, len(verdicts) + 1))
    if rule.weights is None:
        rewards = [_right_or_wrong(verdict, factor, rule) for verdict, factor in zip(verdicts, factors, strict=True)]
    else:
        scores = _normal_scores(verdicts, rule.weights) if rule.normalize else [verdict.score for verdict in verdicts]
        base = min([0.0, *(score for score in scores if score is not None)])
        rewards = [
            base + (score - base) * factor if score is not None else _unscored(verdict, rule)
            for verdict, score, factor in zip(verdicts, scores, factors, strict=True)
        ]
    for reward in rewards:
        if reward is not None and not abs(reward) <= LARGEST_REWARD:
            raise UserError(
                f"a reward is {reward:g}, expected at most {LARGEST_REWARD:g} in size: reward.kind={rule.kind}, "
                f"tau={rule.tau:g}, wrong_reward={rule.wrong_reward:g}"
            )
    return _balanced(verdicts, rewards) if rule.balance_negatives else rewards


def ranks_by(logprobs: Sequence[float]) -> list[int]:
    """1-based rank of each completion, the likeliest first; of equals the earlier one."""
    order = sorted(range(len(logprobs)), key=lambda position: -logprobs[position])
    ranks = [0] * len(order)
    for rank, position in enumerate(order, 1):
        ranks[position] = rank
    return ranks


def _factors(rule: RewardRule, ranks: Sequence[int]) -> list[float]:
    if rule.kind == "simple":
        return [1.0] * len(ranks)
    if rule.kind == "unlikely":
        return [1 - rule.unlikely_share * (len(ranks) - rank) / len(ranks) for rank in ranks]
    sign = -1 if rule.kind == "rank" else 1
    return [_exp(sign * (rank - 1) / rule.tau) for rank in ranks]


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def _right_or_wrong(verdict: Verdict, factor: float, rule: RewardRule) -> float | None:
    if verdict.outcome == Outcome.CORRECT:
        return factor
    return None if verdict.outcome in _FAILED else rule.wrong_reward


def _unscored(verdict: Verdict, rule: RewardRule) -> float | None:
    return rule.wrong_reward if verdict.outcome == Outcome.TRUNCATED else None


def contributions(verdicts: Sequence[Verdict], weights: Mapping[str, float], normalize: bool) -> dict[str, np.ndarray]:
    """What each part adds to the weighted sums of one group, before rank shapes them.

    Args:
        verdicts: one per completion.
        weights: factor of each part.
        normalize: each part by the group's mean and deviation first; constant parts then add 0.

    Returns:
        Part -> one number per completion: 0 where the part does not apply, or the completion has no score. Their sum
        is the completion's score, or with ``normalize`` what the update uses in its place.
    """
    scored = [verdict.score is not None for verdict in verdicts]
    added = {}
    for name, weight in weights.items():
        values = [verdict.parts.get(name) if ok else None for verdict, ok in zip(verdicts, scored, strict=True)]
        there = [i for i, value in enumerate(values) if value is not None]
        column = np.array([values[i] for i in there], np.float64)
        added[name] = np.zeros(len(verdicts))
        if weight and not normalize:
            added[name][there] = weight * column
        elif weight and len(there) > 1 and np.ptp(column) > 0:
            added[name][there] = weight * (column - column.mean()) / (column.std(ddof=1) + NORMAL_EPSILON)
    return added


def _normal_scores(verdicts: Sequence[Verdict], weights: Mapping[str, float]) -> list[float | None]:
    """Weighted sums of parts that have mean 0 and deviation 1 within the group."""
    sums = sum(contributions(verdicts, weights, normalize=True).values(), np.zeros(len(verdicts)))
    return [None if verdict.score is None else float(value) for value, verdict in zip(sums, verdicts, strict=True)]


def _balanced(verdicts: Sequence[Verdict], rewards: Rewards) -> Rewards:
    """Completions without a reward stay without one."""
    right = [reward for v, reward in zip(verdicts, rewards, strict=True) if v.outcome == Outcome.CORRECT]
    wrong = sum(reward is not None for reward in rewards) - len(right)
    if not right or not wrong:
        return rewards
    penalty = -sum(reward for reward in right if reward is not None) / wrong
    return [
        reward if reward is None or verdict.outcome == Outcome.CORRECT else penalty
        for verdict, reward in zip(verdicts, rewards, strict=True)
    ]
