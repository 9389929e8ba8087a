"""What is said about checks that failed, and when there is nothing to learn from."""

from __future__ import annotations

import pytest

from bgrpo.errors import UserError
from bgrpo.groups import Completion, Verdict
from bgrpo.scoring.failed_checks import describe_failures, failures_of_steps, first_details, refuse_if_all_failed


def completions(*verdicts: str) -> list[Completion]:
    """``outcome`` or ``outcome: detail`` each."""
    parts = [text.partition(": ") for text in verdicts]
    return [Completion([1], [0.0], True, "", Verdict(outcome, detail=detail)) for outcome, _, detail in parts]


def test_the_first_of_each_kind_is_kept() -> None:
    mixed = completions("wrong", "error: one", "timeout: late", "error: two", "truncated", "correct")
    assert first_details(mixed) == {"error": "one", "timeout": "late"}
    assert first_details(completions("error")) == {"error": "no detail is known"}
    assert first_details(completions("correct", "unparseable", "truncated")) == {}


def test_each_kind_is_a_line_with_its_share_of_the_checks() -> None:
    """Truncated completions are not checked."""
    outcomes = {"correct": 1000, "error": 200, "timeout": 1, "truncated": 99}
    assert describe_failures(outcomes, {"error": "why", "timeout": "late"}) == [
        "error in 200 of 1,201 checks, the first: why",
        "timeout in 1 of 1,201 checks, the first: late",
    ]
    assert describe_failures(outcomes, {}) == []


def test_steps_are_summed_and_the_earliest_detail_is_told() -> None:
    steps = [
        {"outcome/wrong": 4.0, "outcome/error": None, "kl": 1.0},
        {"outcome/wrong": 3.0, "outcome/error": 1.0, "details": {"error": "first"}},
        {"outcome/wrong": 2.0, "outcome/error": 2.0, "details": {"error": "second"}},
    ]
    assert failures_of_steps(steps) == ["error in 3 of 12 checks, the first: first"]
    assert failures_of_steps([]) == failures_of_steps(steps[:1]) == []


@pytest.mark.parametrize(
    "verdicts",
    [["error: why", "wrong"], ["timeout", "correct"], ["truncated"], [], ["error"] * 99 + ["unparseable"], ["trivial"]],
)
def test_one_verdict_is_enough_to_go_on(verdicts: list[str]) -> None:
    refuse_if_all_failed(completions(*verdicts), "step 1")


@pytest.mark.parametrize(
    ("verdicts", "causes"),
    [
        (["error: why"], "error in 1 of 1 checks, the first: why"),
        (["truncated", "timeout: late"], "timeout in 1 of 1 checks, the first: late"),
        (["timeout: late", "error: why", "error: how"], "timeout in 1 of 3 .* late.*error in 2 of 3 .* why"),
    ],
)
def test_a_step_without_any_verdict_ends_the_run(verdicts: list[str], causes: str) -> None:
    with pytest.raises(UserError, match=rf"^step 7: no check came to a verdict, .*{causes}.* --resume$"):
        refuse_if_all_failed(completions(*verdicts), "step 7")
