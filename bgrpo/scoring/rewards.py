"""From outcomes and ranks to rewards, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.tasks.base import Outcome

LARGEST_REWARD = 1e12
"""In size. Beyond it, sums of squares leave the range of the update's float32."""

_UNSCORED = frozenset({Outcome.TRUNCATED, Outcome.TIMEOUT, Outcome.ERROR})


def group_rewards(
    verdicts: Sequence[Verdict],
    kind: str,
    tau: float,
    wrong_reward: float = 0.0,
    balance_negatives: bool = False,
) -> list[float]:
    """Rewards of one group's completions.

    Args:
        verdicts: one per completion, best beam first: position i has rank i + 1.
        kind: ``simple`` (1 if correct), ``rank`` (exp(-(rank - 1) / tau) if correct), ``reverse_rank``
            (exp(+(rank - 1) / tau) if correct) or ``function`` (the completion's own score).
        tau: scale of the rank kinds, in ranks.
        wrong_reward: of every completion that is not correct; with ``function``, of those without a score
            (truncated, timed out, failed).
        balance_negatives: when some but not all are correct, give every other completion the same reward such that
            the group sums to zero.

    Raises:
        UserError: unknown kind; ``function`` where a checked completion has no score; a reward that is not finite, or
            beyond :data:`LARGEST_REWARD`.
    """
    if kind == "function":
        rewards = [_function_reward(verdict, wrong_reward) for verdict in verdicts]
    else:
        right = _right_rewards(len(verdicts), kind, tau)
        rewards = [
            reward if verdict.outcome == Outcome.CORRECT else wrong_reward
            for verdict, reward in zip(verdicts, right, strict=True)
        ]
    for rank, reward in enumerate(rewards, start=1):
        if not abs(reward) <= LARGEST_REWARD:
            raise UserError(
                f"the reward of rank {rank} of {len(rewards)} is {reward:g}, expected at most {LARGEST_REWARD:g} in "
                f"size: reward.kind={kind}, tau={tau:g}, wrong_reward={wrong_reward:g}"
            )
    return _balanced(verdicts, rewards) if balance_negatives else rewards


def _right_rewards(count: int, kind: str, tau: float) -> list[float]:
    if kind == "simple":
        return [1.0] * count
    if kind == "rank":
        return [math.exp(-position / tau) for position in range(count)]
    if kind == "reverse_rank":
        return [_exp(position / tau) for position in range(count)]
    raise UserError(f"reward.kind={kind!r}: expected simple, rank, reverse_rank or function")


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def _function_reward(verdict: Verdict, wrong_reward: float) -> float:
    if verdict.outcome in _UNSCORED:
        return wrong_reward
    if verdict.score is None:
        raise UserError(f"reward.kind=function: a completion with outcome {verdict.outcome} came back without a score")
    return verdict.score


def _balanced(verdicts: Sequence[Verdict], rewards: list[float]) -> list[float]:
    correct = [verdict.outcome == Outcome.CORRECT for verdict in verdicts]
    wrong = len(correct) - sum(correct)
    if wrong in (0, len(correct)):
        return rewards
    penalty = -sum(reward for reward, right in zip(rewards, correct, strict=True) if right) / wrong
    return [reward if right else penalty for reward, right in zip(rewards, correct, strict=True)]
