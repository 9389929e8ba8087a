"""What is told about checks that failed: they came to no verdict, because of an error or a time limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bgrpo.config import RewardSection
from bgrpo.errors import UserError
from bgrpo.groups import Completion
from bgrpo.tasks.base import Outcome

FAILED = (Outcome.ERROR, Outcome.TIMEOUT)
DETAILS = "details"
"""Key of a step's first details in its line of ``metrics.jsonl``; not there when no check failed."""


def first_details(completions: Iterable[Completion]) -> dict[str, str]:
    """Kind of failure -> detail of the first completion with it.

    Kinds are the outcomes that say a check failed, and ``part NAME`` where a part of the reward failed whose failure
    has not become the outcome: it is watched only.
    """
    details: dict[str, str] = {}
    for completion in completions:
        verdict = completion.judged
        if verdict.outcome in FAILED:
            details.setdefault(str(verdict.outcome), verdict.detail or "no detail is known")
        else:
            for name, detail in verdict.failures.items():
                details.setdefault(f"part {name}", detail)
    return details


def failures_in(step: Mapping[str, Any]) -> Counter[str]:
    """Completions by outcome, and by part of the reward that failed, from the metrics of a training step."""
    outcomes = Counter({str(outcome): int(step.get(f"outcome/{outcome}") or 0) for outcome in Outcome})
    shares = {key.split("/")[1]: share or 0.0 for key, share in step.items() if key.endswith("/failed")}
    parts = {f"part {name}": round(share * outcomes.total()) for name, share in shares.items()}
    return outcomes + Counter(parts)


ENOUGH = 8
"""Completions of a step that say what a reward does, however many more were truncated."""


def describe_failures(outcomes: Mapping[str, int], details: Mapping[str, str]) -> list[str]:
    """One line per kind of failure; a kind that is not counted here is told as it stands.

    Args:
        outcomes: completions by outcome (those that were truncated were not checked), and by part that failed.
        details: of :func:`first_details`.
    """
    checks = sum(outcomes.get(outcome, 0) for outcome in Outcome if outcome != Outcome.TRUNCATED)
    counts = {kind: f" in {outcomes[kind]:,} of {checks:,} checks, the first" for kind in details if kind in outcomes}
    return [f"{kind}{counts.get(kind, '')}: {text}" for kind, text in details.items()]


def failures_of_steps(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per kind of failure in all training steps, whose metrics are as ``metrics.jsonl`` has them."""
    outcomes: Counter[str] = Counter()
    details: dict[str, str] = {}
    for step in steps:
        outcomes += failures_in(step)
        details = step.get(DETAILS, {}) | details
    return describe_failures(outcomes, details)


def refuse_failed_evaluation(outcomes: Mapping[str, int], details: Mapping[str, str]) -> None:
    """Nothing is measured where no check came to a verdict: a table of zeros would say that the policy is bad.

    Args:
        outcomes: completions by outcome, so far.
        details: of :func:`first_details`.

    Raises:
        UserError: all checks failed; says why.
    """
    checks = _checks(outcomes)
    if checks and sum(outcomes.get(kind, 0) for kind in FAILED) == checks:
        causes = "; ".join(describe_failures(outcomes, details))
        raise UserError(f"no check came to a verdict, so nothing can be measured: {causes}; mend that, then try again")


def refuse_unscored_evaluation(outcomes: Mapping[str, int], reward: str) -> None:
    """The same where no part of the reward applies to anything that was decoded.

    Args:
        outcomes: completions by outcome.
        reward: what gives the scores.

    Raises:
        UserError: says so.
    """
    checks = _checks(outcomes)
    if checks and outcomes.get(Outcome.UNSCORED, 0) == checks:
        raise UserError(f"{inapplicable(reward, f'any of {checks:,} completions')}, so nothing can be measured")


def inapplicable(reward: str, to: str) -> str:
    """That no part of a reward gives a score, and what would be right.

    Args:
        reward: what gives the scores, see ``RewardSection.described``.
        to: what they were asked about.
    """
    return (
        f"no part of the reward applies to {to}: {reward} gave None each time (of a function: does it end "
        f"without return? of a metric: there is no known answer); return a number, or add a part that does"
    )


def truncation(outcomes: Mapping[str, int], max_new_tokens: int, option: str, scored: bool) -> str:
    """What is said of completions that were cut off, where most were; nothing where not.

    Args:
        outcomes: completions by outcome.
        max_new_tokens: where they were cut off.
        option: that gives it.
        scored: a part of the reward scores them all the same.
    """
    total, cut = sum(outcomes.values()), outcomes.get(Outcome.TRUNCATED, 0)
    if 2 * cut <= total:
        return ""
    how = ", and are scored as they are" if scored else ", unjudged"
    return f"{cut:,} of {total:,} completions were cut off at {max_new_tokens} tokens{how}: raise {option}"


def _checks(outcomes: Mapping[str, int]) -> int:
    """Completions that were to be judged: those that were truncated are not."""
    return sum(outcomes.values()) - outcomes.get(Outcome.TRUNCATED, 0)


def refuse_failed_step(completions: Sequence[Completion], reward: RewardSection, where: str) -> None:
    """Nothing should be learned where checks come to no verdict; truncated completions, which are not checked, aside.

    Args:
        completions: of one step.
        reward: whose parts they are; it says what share of the checks may fail.
        where: the step, for the message.

    Raises:
        UserError: more of them failed, or all did, or no part of the reward applies to any; says why. A few that no
            part applies to, where nearly all others were truncated, do not say that it never will.
    """
    outcomes = Counter(str(completion.outcome) for completion in completions)
    checks = outcomes.total() - outcomes[Outcome.TRUNCATED]
    failed = sum(outcomes[kind] for kind in FAILED)
    if checks and outcomes[Outcome.UNSCORED] == checks and checks >= min(ENOUGH, outcomes.total() / 2):
        raise UserError(
            f"{where}: {inapplicable(reward.described, f'any of {checks:,} completions')}, so nothing was learned"
        )
    most = reward.max_failures
    if failed and (failed > most * checks or failed + outcomes[Outcome.UNSCORED] == checks):
        causes = "; ".join(describe_failures(outcomes, first_details(completions)))
        what = "no check came to a verdict" if failed == checks else f"more than reward.max_failures={most:g} failed"
        raise UserError(
            f"{where}: {what}, so nothing was learned from this step: {causes}; mend that, then go on from the newest "
            f"checkpoint with --resume"
        )
