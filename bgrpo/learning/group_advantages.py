"""Advantages of a step's groups, of completions or of tokens, as the configuration asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bgrpo.config import TrainConfig
from bgrpo.config.rewards import OF_TOKENS
from bgrpo.groups import RANKED, ScoredGroup
from bgrpo.scoring.advantages import advantages
from bgrpo.scoring.siblings import sibling_advantages
from bgrpo.scoring.without_replacement import inclusion_weights


def group_advantages(
    groups: Sequence[ScoredGroup], rewards: Sequence[Sequence[float | None]], config: TrainConfig
) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Advantages of the completions, and of their tokens.

    Args:
        groups: that the update uses.
        rewards: of their completions.
        config: of the run.

    Returns:
        For each group one number per completion, and one per token, the former being the latter's mean; nothing for
        the tokens of a group where all of a completion have the same.
    """
    rewards = [counted(*pair, config) for pair in zip(groups, rewards, strict=True)]
    if config.advantage_kind in OF_TOKENS:
        of_tokens = [_of_tokens(*pair, config) for pair in zip(groups, rewards, strict=True)]
        return [[sum(tokens) / len(tokens) for tokens in group] for group in of_tokens], of_tokens
    values = advantages(
        rewards,
        [[completion.logprob for completion in group.completions] for group in groups],
        config.advantage_kind,
        config.advantage.alpha,
        [group.kappa for group in groups],
        config.advantage.k,
    )
    return values, [[] for _ in groups]


def counted(group: ScoredGroup, rewards: Sequence[float | None], config: TrainConfig) -> list[float | None]:
    """The rewards, with ``advantage.duplicates=once`` without those of repeated completions."""
    left_out = repeated(group) if config.advantage.duplicates == "once" else set()
    return [None if place in left_out else reward for place, reward in enumerate(rewards)]


def repeated(group: ScoredGroup) -> set[int]:
    """Places of the completions that have the tokens of an earlier one."""
    first: dict[tuple[int, ...], int] = {}
    for place, completion in enumerate(group.completions):
        first.setdefault(tuple(completion.tokens), place)
    return set(range(len(group.completions))) - set(first.values())


def _of_tokens(group: ScoredGroup, rewards: Sequence[float | None], config: TrainConfig) -> list[list[float]]:
    """Samples weigh equally, as the likely ones come more often; distinct completions by probability."""
    known = [place for place, reward in enumerate(rewards) if reward is not None]
    if not known:
        return [[0.0] * len(completion.tokens) for completion in group.completions]
    logps_K = np.array([group.completions[place].logprob for place in known], np.float64)
    if config.decode_mode == "sample":
        weights_K = np.full(len(known), 1 / len(known))
    else:
        alpha = config.advantage.alpha if config.decode_mode in RANKED else 1.0
        weights_K = inclusion_weights(alpha * logps_K, group.kappa)
    return sibling_advantages([completion.tokens for completion in group.completions], rewards, weights_K)
