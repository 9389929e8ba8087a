"""From outcomes and ranks to rewards, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bgrpo.errors import UserError
from bgrpo.tasks.base import Outcome

_UNSCORED = frozenset({Outcome.TRUNCATED, Outcome.TIMEOUT, Outcome.ERROR})


def group_rewards(
    outcomes: Sequence[str],
    kind: str,
    tau: float,
    wrong_reward: float = 0.0,
    balance_negatives: bool = False,
    scores: Sequence[float | None] | None = None,
) -> list[float]:
    """Rewards of one group's completions.

    Args:
        outcomes: one :class:`~bgrpo.tasks.base.Outcome` per completion, best beam first: position i has rank i + 1.
        kind: ``simple`` (1 if correct), ``rank`` (exp(-(rank - 1) / tau) if correct), ``reverse_rank``
            (exp(+(rank - 1) / tau) if correct) or ``function`` (the completion's own score).
        tau: scale of the rank kinds, in ranks.
        wrong_reward: of every completion that is not correct; with ``function``, of those without a score
            (truncated, timed out, failed).
        balance_negatives: when some but not all are correct, give every other completion the same reward such that
            the group sums to zero.
        scores: the user function's values, needed by ``function`` only; None when no completion of the group has one.

    Raises:
        UserError: unknown kind, or ``function`` where a checked completion has no score.
    """
    if kind == "function":
        rewards = _function_rewards(outcomes, scores, wrong_reward)
    else:
        right = _right_rewards(len(outcomes), kind, tau)
        rewards = [
            reward if outcome == Outcome.CORRECT else wrong_reward
            for outcome, reward in zip(outcomes, right, strict=True)
        ]
    return _balanced(outcomes, rewards) if balance_negatives else rewards


def _right_rewards(count: int, kind: str, tau: float) -> list[float]:
    if kind == "simple":
        return [1.0] * count
    if kind == "rank":
        return [math.exp(-position / tau) for position in range(count)]
    if kind == "reverse_rank":
        return [math.exp(position / tau) for position in range(count)]
    raise UserError(f"reward.kind={kind!r}: expected simple, rank, reverse_rank or function")


def _function_rewards(
    outcomes: Sequence[str], scores: Sequence[float | None] | None, wrong_reward: float
) -> list[float]:
    rewards = []
    for outcome, score in zip(outcomes, scores or [None] * len(outcomes), strict=True):
        if outcome in _UNSCORED:
            rewards.append(wrong_reward)
        elif score is None:
            raise UserError(f"reward.kind=function: a completion with outcome {outcome} came back without a score")
        else:
            rewards.append(float(score))
    return rewards


def _balanced(outcomes: Sequence[str], rewards: list[float]) -> list[float]:
    correct = [outcome == Outcome.CORRECT for outcome in outcomes]
    wrong = len(correct) - sum(correct)
    if wrong in (0, len(correct)):
        return rewards
    penalty = -sum(reward for reward, right in zip(rewards, correct, strict=True) if right) / wrong
    return [reward if right else penalty for reward, right in zip(rewards, correct, strict=True)]
