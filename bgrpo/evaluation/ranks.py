"""Ranks of the first correct completion: what a search of one width says about every smaller one."""

from __future__ import annotations

from collections.abc import Sequence

from bgrpo.groups import Completion
from bgrpo.tasks.base import Outcome


def first_correct(outcomes: Sequence[str]) -> int | None:
    """1-based rank of the first correct completion; None where none is correct."""
    return next((rank for rank, outcome in enumerate(outcomes, start=1) if outcome == Outcome.CORRECT), None)


def rank_in(group: Sequence[Completion]) -> int | None:
    """:func:`first_correct` of judged completions in rank order."""
    return first_correct([completion.outcome for completion in group])


def solved_within(ranks: Sequence[int | None], width: int) -> list[float]:
    """For each k of 1 … width, the share of problems whose first correct rank is k or better.

    Of one search of this width: a narrower search may keep other beams, and so solve more or fewer.
    """
    return [sum(rank is not None and rank <= k for rank in ranks) / len(ranks) for k in range(1, width + 1)]
