"""What a run has spent, in four currencies, and how far its budget reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bgrpo.config import TrainConfig
from bgrpo.groups import ScoredGroup

METRIC_PREFIX = "used/"


@dataclass(frozen=True, slots=True)
class Spent:
    """Totals since the start of a run, over all its attempts.

    Attributes:
        steps: training steps: batches of rollouts.
        gradient_steps: optimizer steps.
        completions: decoded and scored for learning, uninformative groups included.
        tokens: of these completions, end tokens included.
        seconds: of rollouts, weights and updates; start-up, validation and checkpoints do not count.
    """

    steps: int = 0
    gradient_steps: int = 0
    completions: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> Spent:
        """What :meth:`metrics` gave; nothing where they are absent."""
        known = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        spent = {name: known.get(f"{METRIC_PREFIX}{name}", 0) for name in cls.__slots__}
        seconds = float(spent.pop("seconds"))
        return cls(seconds=seconds, **{name: int(value) for name, value in spent.items()})

    def metrics(self) -> dict[str, float]:
        """As metrics of a step: ``used/steps`` and so on."""
        return {f"{METRIC_PREFIX}{name}": float(getattr(self, name)) for name in self.__slots__}

    def with_rollouts(self, groups: Sequence[ScoredGroup]) -> Spent:
        """After one more step's rollouts."""
        completions = [completion for group in groups for completion in group.completions]
        return replace(
            self,
            completions=self.completions + len(completions),
            tokens=self.tokens + sum(len(completion.tokens) for completion in completions),
        )

    def with_update(self, gradient_steps: int, seconds: float) -> Spent:
        """After the step's update."""
        return replace(
            self,
            steps=self.steps + 1,
            gradient_steps=self.gradient_steps + gradient_steps,
            seconds=self.seconds + seconds,
        )


def progress(config: TrainConfig, spent: Spent) -> float:
    """How much of the budget is spent: 0 at the start, 1 or a little more at the end; the currency that is furthest."""
    budget = config.budget
    limits = {"steps": config.steps, "completions": budget.completions, "tokens": budget.tokens}
    limits["seconds"] = budget.seconds  # type: ignore[assignment]  # a float
    return max(getattr(spent, name) / limit for name, limit in limits.items() if limit is not None)


def is_spent(config: TrainConfig, spent: Spent) -> bool:
    """True when the run has nothing left to do."""
    return progress(config, spent) >= 1


def expected_steps(config: TrainConfig, spent: Spent, batches: int) -> float:
    """Training steps that the run will have made when its budget is spent, if steps go on to cost what they did.

    Args:
        config: of the run.
        spent: so far.
        batches: of rollouts that ``completions`` and ``tokens`` of ``spent`` count.
    """
    budget, expected = config.budget, float(config.steps)
    for limit, used, over in (
        (budget.completions, spent.completions, batches),
        (budget.tokens, spent.tokens, batches),
        (budget.seconds, spent.seconds, spent.steps),
    ):
        if limit is not None and used > 0:
            expected = min(expected, limit / used * over)
    return expected
