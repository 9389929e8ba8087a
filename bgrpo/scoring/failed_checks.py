"""What is told about checks that failed: they came to no verdict, because of an error or a time limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bgrpo.errors import UserError
from bgrpo.groups import Completion
from bgrpo.tasks.base import Outcome

FAILED = (Outcome.ERROR, Outcome.TIMEOUT)
DETAILS = "details"
"""Key of a step's first details in its line of ``metrics.jsonl``; not there when no check failed."""


def first_details(completions: Iterable[Completion]) -> dict[str, str]:
    """Outcome -> detail of the first completion with that outcome, of the outcomes that say a check failed."""
    details: dict[str, str] = {}
    for completion in completions:
        if completion.verdict is not None and completion.outcome in FAILED:
            details.setdefault(str(completion.outcome), completion.verdict.detail or "no detail is known")
    return details


def outcomes_of(step: Mapping[str, Any]) -> Counter[str]:
    """Completions by outcome, from the metrics of a training step."""
    return Counter({str(outcome): int(step.get(f"outcome/{outcome}") or 0) for outcome in Outcome})


def describe_failures(outcomes: Mapping[str, int], details: Mapping[str, str]) -> list[str]:
    """One line per kind of failure.

    Args:
        outcomes: completions by outcome; those that were truncated were not checked.
        details: of :func:`first_details`.
    """
    checks = sum(outcomes.values()) - outcomes.get(Outcome.TRUNCATED, 0)
    return [f"{kind} in {outcomes[kind]:,} of {checks:,} checks, the first: {text}" for kind, text in details.items()]


def failures_of_steps(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per kind of failure in all training steps, whose metrics are as ``metrics.jsonl`` has them."""
    outcomes: Counter[str] = Counter()
    details: dict[str, str] = {}
    for step in steps:
        outcomes += outcomes_of(step)
        details = step.get(DETAILS, {}) | details
    return describe_failures(outcomes, details)


def refuse_if_all_failed(completions: Sequence[Completion], where: str) -> None:
    """Nothing can be learned where no check came to a verdict; truncated completions, which are not checked, aside.

    Raises:
        UserError: that is so; says why.
    """
    outcomes = Counter(str(completion.outcome) for completion in completions)
    checks = outcomes.total() - outcomes[Outcome.TRUNCATED]
    if checks and checks == sum(outcomes[kind] for kind in FAILED):
        causes = "; ".join(describe_failures(outcomes, first_details(completions)))
        raise UserError(
            f"{where}: no check came to a verdict, so nothing was learned from this step: {causes}; mend that, then go "
            f"on from the newest checkpoint with --resume"
        )
