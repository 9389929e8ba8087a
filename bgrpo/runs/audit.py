"""Whether what is only watched falls while the trained reward rises: what reward hacking looks like.

The rule, fixed before any number is seen. The steps are cut in three; the first third is compared with the last, each
of at least :data:`LEAST_STEPS` steps. A change counts when Welch's t-test over the steps' means finds it at
:data:`LEVEL` (one-sided; divided by the number of watched parts), and it is as large as half of the deviation between
steps. Of 1,000 simulated runs each in which nothing changes (normal or heavy-tailed noise, the part being the reward's
opposite, which is the worst case) 0.0 to 0.1 % are reported; 0.9 % where each step resembles the one before
(autocorrelation 0.3), 4.1 % at 0.6. ``tests/runs/test_audit.py`` repeats some of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

from bgrpo.config import RewardSection

LEAST_STEPS = 6
LEVEL = 0.001
LEAST_EFFECT = 0.5


class Change(NamedTuple):
    """From the first third of a run's steps to the last."""

    first: float
    last: float
    p_value: float  # of a change as large as this in its direction, if there were none
    effect: float  # in deviations between steps


def audit(reward: RewardSection, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning for each watched part (weight 0) that falls while the trained reward rises; see the module.

    Args:
        reward: of the run.
        steps: metrics of each step; those without a value of the part or of the reward do not count.
    """
    watched = [name for name, part in reward.parts.items() if not part.weight]
    found = []
    for name in watched:
        key = f"part/{name}/mean"
        both = [(step.get(key), step.get("score_mean")) for step in steps]
        known = [pair for pair in both if all(value is not None and math.isfinite(value) for value in pair)]
        fall, rise = (change([float(pair[place] or 0) for pair in known]) for place in (0, 1))
        if fall is None or rise is None or not (fall.last < fall.first and rise.last > rise.first):
            continue
        level = LEVEL / len(watched)
        if max(fall.p_value, rise.p_value) < level and min(fall.effect, rise.effect) >= LEAST_EFFECT:
            third = len(known) // 3
            found.append(
                f"warning: this may be reward hacking: {name}, which is only watched, fell from {fall.first:.4g} to "
                f"{fall.last:.4g} while the reward rose from {rise.first:.4g} to {rise.last:.4g} (means of the first "
                f"and the last {third} steps): read what the policy writes with bgrpo show, raise learner.beta, or "
                f"give {name} a weight"
            )
    return found


def change(values: Sequence[float]) -> Change | None:
    """From the first third of finite values to the last; None where these are too short."""
    third = len(values) // 3
    if third < LEAST_STEPS:
        return None
    first, last = values[:third], values[-third:]
    spread = math.sqrt((variance(first) + variance(last)) / 2)
    gap = abs(fmean(last) - fmean(first))
    if spread <= 1e-12 * max(map(abs, values)):  # constant, twice
        moved = gap > 1e-9 * max(map(abs, values))
        return Change(fmean(first), fmean(last), 0.0 if moved else 1.0, math.inf if moved else 0.0)
    from scipy.stats import ttest_ind_from_stats  # slow to import

    begun, ended = fmean(first), fmean(last)
    p_value = (
        float(ttest_ind_from_stats(begun, stdev(first), third, ended, stdev(last), third, equal_var=False).pvalue) / 2
    )
    return Change(begun, ended, p_value, gap / spread)
