"""What is said about checks that failed, and when there is nothing to learn from."""

from __future__ import annotations

import pytest

from bgrpo.config import RewardSection
from bgrpo.errors import UserError
from bgrpo.groups import Completion, Verdict
from bgrpo.scoring.failed_checks import describe_failures, failures_of_steps, first_details, refuse_failed_step


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
    assert describe_failures(outcomes, {"validation": "error in 2 of 9 checks, the first: why"}) == [
        "validation: error in 2 of 9 checks, the first: why"
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


def test_a_part_that_is_only_watched_is_told_too() -> None:
    watched = Verdict("scored", 1.0, parts={"a": 1.0, "b": None}, failures={"b": "late"})
    failed = Verdict("error", None, "a: why", parts={"a": None}, failures={"a": "why"})
    of = [Completion([1], [0.0], True, "", verdict) for verdict in (failed, watched, watched)]
    assert first_details(of) == {"error": "a: why", "part b": "late"}
    step = {"outcome/scored": 2.0, "outcome/error": 1.0, "part/b/failed": 2 / 3, "part/a/failed": 1 / 3}
    assert failures_of_steps([step | {"details": first_details(of)}]) == [
        "error in 1 of 3 checks, the first: a: why",
        "part b in 2 of 3 checks, the first: late",
    ]


@pytest.mark.parametrize(
    ("verdicts", "most"),
    [
        (["error: why", "wrong"], 0.5),
        (["timeout", "correct"], 1.0),
        (["truncated"], 0.0),
        ([], 0.0),
        (["error"] * 99 + ["unparseable"], 0.99),
        (["trivial"], 0.0),
        (["unscored", "scored"], 0.0),
        (["unscored", "truncated", "scored"], 0.0),
        (["unscored"] + ["truncated"] * 15, 1.0),
        (["unscored"] * 7 + ["truncated"] * 9, 1.0),
    ],
)
def test_as_many_failures_as_allowed_do_not_end_a_run(verdicts: list[str], most: float) -> None:
    refuse_failed_step(completions(*verdicts), RewardSection(max_failures=most, function="m:f"), "step 1")


@pytest.mark.parametrize(
    ("verdicts", "most", "causes"),
    [
        (["error: why"], 1.0, "no check came to a verdict.*error in 1 of 1 checks, the first: why.* --resume$"),
        (["truncated", "timeout: late"], 1.0, "no check came .*timeout in 1 of 1 checks, the first: late"),
        (["timeout: late", "error: why", "error: how"], 1.0, "timeout in 1 of 3 .* late.*error in 2 of 3 .* why"),
        (["error: why", "wrong", "wrong"], 0.3, r"more than reward.max_failures=0.3 failed.*error in 1 of 3"),
        (
            ["unscored", "truncated", "unscored"],
            1.0,
            "no part of the reward applies to any of 2 completions: function m:f",
        ),
        (
            ["unscored"] * 8 + ["truncated"] * 99,
            1.0,
            "no part of the reward applies to any of 8 completions: function m:f",
        ),
        (["unscored", "error: why"], 1.0, "error in 1 of 2"),
    ],
)
def test_a_step_with_too_few_verdicts_ends_the_run(verdicts: list[str], most: float, causes: str) -> None:
    with pytest.raises(UserError, match=rf"^step 7: .*{causes}"):
        refuse_failed_step(completions(*verdicts), RewardSection(max_failures=most, function="m:f"), "step 7")
