"""How often a policy does better than the one that training started from, on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bgrpo.config import WIN_RATE
from bgrpo.errors import UserError
from bgrpo.evaluation.metrics import Evaluation

DECIDES = "greedy_reward"


def with_win_rate(evaluation: Evaluation, start: Evaluation) -> Evaluation:
    """The same evaluation with ``win_rate``: see :func:`wins`. Unchanged where completions have no scores.

    Args:
        evaluation: of a policy.
        start: of the starting policy; compared with itself it has ½ on every problem.

    Raises:
        UserError: they are of other problems.
    """
    if evaluation.digest != start.digest:
        raise UserError(f"a win rate needs the same problems: {evaluation.digest} now, {start.digest} at the start")
    if DECIDES not in evaluation.values or DECIDES not in start.values:
        return evaluation
    won = wins(evaluation.values[DECIDES], start.values[DECIDES])
    if all(map(math.isnan, won)):
        return evaluation
    return replace(evaluation, values=evaluation.values | {WIN_RATE: won})


def wins(now: Sequence[float], start: Sequence[float]) -> list[float]:
    """1 for each problem whose greedy completion has a higher score than at the start, ½ for an equal one, else 0.

    NaN where one of the two could not be scored.
    """
    return [
        math.nan if math.isnan(new) or math.isnan(old) else 0.5 + 0.5 * ((new > old) - (new < old))
        for new, old in zip(now, start, strict=True)
    ]
