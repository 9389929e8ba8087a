"""One judge: what is scored, how verdicts come back to their completions, and which rewards follow."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
from attempts import attempt
from learner_cases import EOS, TOKENIZER

from bgrpo.config import TrainConfig, build_config, load_config
from bgrpo.errors import UserError
from bgrpo.groups import Completion, Group, Verdict
from bgrpo.scoring import judge as judge_module
from bgrpo.scoring.attempts import Attempt, attempts_of, from_json, to_json, trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.scoring.readable_groups import with_texts
from bgrpo.scoring.reward_server import RewardServer
from bgrpo.scoring.scored_text import Score
from bgrpo.tasks.base import Problem

PROBLEMS = [Problem("p"), Problem("q")]


def group(*finished: bool, logprobs: tuple[float, ...] = ()) -> Group:
    completions = [
        Completion([5 + i, EOS] if done else [5 + i, 6], [logprobs[i] if logprobs else -1.0, -1.0], done)
        for i, done in enumerate(finished)
    ]
    return with_texts(Group([2], completions), TOKENIZER)


def judge(**tree: Any) -> Judge:
    return Judge(build_config(TrainConfig, tree, "test"))


def scored(*scores: float | None) -> list[Verdict]:
    return [Verdict("unscored" if score is None else "scored", score) for score in scores]


def test_attempts_are_all_completions_with_their_problems() -> None:
    groups = [group(True, False), group(True)]
    found = attempts_of(PROBLEMS, groups)
    assert [(a.problem.prompt, a.text, a.group, a.finished) for a in found] == [
        ("p", "t5", 0, True),
        ("p", "t6 t6", 0, False),
        ("q", "t5", 1, True),
    ]
    assert [list(a.tokens) for a in found] == [[5, EOS], [6, 6], [5, EOS]]


def test_attempts_travel_as_json_with_whole_problems() -> None:
    chat = Problem("user: hi", "a", "c", ({"role": "user", "content": "hi"},), ("b",), {"level": [1, None]})
    sent = [Attempt(chat, "x", [1, 2], 7), Attempt(chat, "y", [3], 7), Attempt(Problem("q"), "z", [4], 9)]
    assert from_json(to_json(sent, with_tokens=True)) == [
        Attempt(chat, "x", [1, 2], 0),
        Attempt(chat, "y", [3], 0),
        Attempt(Problem("q"), "z", [4], 1),
    ]
    assert [a.tokens for a in from_json(to_json(sent, with_tokens=False))] == [[], [], []]
    assert len(to_json(sent, with_tokens=True)["problems"]) == 2


def test_verdicts_come_back_to_their_completions() -> None:
    groups = [group(True, False, True), group(False)]
    verdicts = [Verdict("correct"), Verdict("truncated"), Verdict("timeout"), Verdict("truncated")]
    found = judge().score([4, 9], groups, verdicts, version=7)
    assert [g.outcomes for g in found] == [["correct", "truncated", "timeout"], ["truncated"]]
    assert [(g.index, g.prompt_ids, g.version) for g in found] == [(4, [2], 7), (9, [2], 7)]
    assert [completion.text for completion in found[0].completions] == ["t5", "t6 t6", "t7"]


def test_the_rank_counts_whatever_was_truncated_before() -> None:
    verdicts = [Verdict("truncated"), Verdict("correct"), Verdict("correct")]
    (found,) = judge(rollout={"group_size": 4}).score([0], [group(False, True, True)], verdicts, 0)
    assert found.rewards == pytest.approx([0.0, math.exp(-1 / 4), math.exp(-2 / 4)])


def test_samples_are_ranked_by_log_probability_not_by_their_order() -> None:
    of_samples = judge(algorithm="grpo", reward={"function": "m:f", "kind": "unlikely", "unlikely_share": 1.0})
    drawn = group(True, True, True, logprobs=(-2.0, -1.0, -3.0))
    (found,) = of_samples.score([0], [drawn], scored(1.0, 1.0, 1.0), 0)
    assert found.rewards == pytest.approx([2 / 3, 1 / 3, 1.0])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_verdicts_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="verdicts than completions"):
        judge().score([0], [group(True, True)], [Verdict("wrong")] * count, version=0)


def test_a_completion_without_verdict_has_no_outcome() -> None:
    with pytest.raises(ValueError, match="has not been judged"):
        _ = group(True).completions[0].outcome


@pytest.mark.parametrize(
    ("tree", "target", "limits"),
    [
        ({"reward": {"function": "m:f"}, "verifier": {"timeout_s": 2}}, "m:f", (2.0, None)),
        ({"reward": {"parts": {"x": {"function": "m:f", "timeout_s": 9}}}}, "m:f", (9.0, None)),
        ({"task": {"options": {"ring": "QQ"}}}, "task:polynomial", (5.0, 4 * 1024**3)),
        ({"task": {"name": "m:C"}}, "task:m:C", (5.0, None)),
    ],
)
def test_the_check_process_is_what_the_configuration_says(
    tree: dict[str, Any], target: str, limits: tuple[float, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Noted:
        tried = None

        def __init__(
            self,
            target: str,
            options: Any = None,
            timeout_s: float = 5.0,
            memory_bytes: int | None = None,
            trial: Attempt | None = None,
        ) -> None:
            asked.append((target, options or {}, (timeout_s, memory_bytes), trial))

        def __enter__(self) -> Noted:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def run(self, attempts: list[Attempt]) -> list[Verdict]:
            return []

    monkeypatch.setattr(judge_module, "CheckProcess", Noted)
    judge(**tree).start(attempt("p", "c")).close()
    assert asked == [(target, tree.get("task", {}).get("options", {}), limits, attempt("p", "c"))]


@pytest.mark.parametrize(
    ("answers", "trial"), [([], None), (["", ""], ("0", "")), (["", "x", "y"], ("1", "x")), (["z"], ("0", "z"))]
)
def test_checks_are_tried_on_the_first_known_answer(answers: list[str], trial: tuple[str, str] | None) -> None:
    found = trial_of([Problem(str(i), answer) for i, answer in enumerate(answers)])
    assert (found and (found.problem.prompt, found.text)) == trial


# -- named parts -------------------------------------------------------------------------------------------------------

PARTS = {
    "right": {"check": True, "weight": 2.0},
    "short": {"function": "m:f", "weight": -0.5},
    "watched": {"metric": "completion_tokens", "weight": 0},
}


def joined(finished: bool = True, parts: dict[str, Any] = PARTS, **verdicts: Verdict) -> Verdict:
    (verdict,) = judge(reward={"parts": parts}).verdicts(
        [Attempt(Problem("p"), "c", (), 0, finished)], {name: [verdict] for name, verdict in verdicts.items()}
    )
    return verdict


def test_the_score_is_the_weighted_sum_and_the_check_says_what_is_correct() -> None:
    found = joined(right=Verdict("correct"), short=Verdict("scored", 3.0), watched=Verdict("scored", 7.0))
    assert (found.outcome, found.score) == ("correct", 2.0 - 1.5)
    assert found.parts == {"right": 1.0, "short": 3.0, "watched": 7.0} and found.failures == {}


def test_a_part_that_does_not_apply_is_left_out_of_the_sum() -> None:
    found = joined(right=Verdict("trivial"), short=Verdict("unscored"), watched=Verdict("unscored"))
    assert (found.outcome, found.score) == ("trivial", 0.0)
    assert found.parts == {"right": 0.0, "short": None, "watched": None}


def test_a_part_that_fails_is_no_zero_but_the_outcome_unless_it_is_only_watched() -> None:
    failed = Verdict("timeout", detail="late")
    found = joined(right=Verdict("correct"), short=failed, watched=Verdict("scored", 1.0))
    assert (found.outcome, found.score, found.detail) == ("timeout", None, "short: late")
    assert found.failures == {"short": "late"} and found.parts["right"] == 1.0
    found = joined(right=Verdict("correct"), short=Verdict("scored", 1.0), watched=failed)
    assert (found.outcome, found.score, found.failures) == ("correct", 1.5, {"watched": "late"})


def test_without_a_check_an_outcome_says_whether_there_is_a_score() -> None:
    parts = {"short": PARTS["short"]}
    assert joined(parts=parts, short=Verdict("scored", 3.0)).outcome == "scored"
    assert joined(parts=parts, short=Verdict("unscored")).outcome == "unscored"
    for least, outcome in ((-2.0, "correct"), (-1.5, "wrong"), (0.0, "wrong")):
        above = judge(reward={"parts": parts, "correct_above": least})
        (found,) = above.verdicts([attempt("p", "c")], {"short": scored(3.0)})
        assert (found.outcome, found.score) == (outcome, -1.5)


def test_what_was_cut_off_is_scored_only_where_a_part_says_so() -> None:
    nothing = Verdict("truncated")
    cut = joined(False, right=nothing, short=nothing, watched=nothing)
    assert (cut.outcome, cut.score, set(cut.parts.values())) == ("truncated", None, {None})
    cut = joined(False, right=nothing, short=Verdict("scored", 3.0), watched=nothing)
    assert (cut.outcome, cut.score) == ("truncated", -1.5)


def test_what_was_cut_off_and_has_no_score_where_it_was_asked_for_is_no_zero() -> None:
    parts = {"short": PARTS["short"], "watched": {"metric": "bleu", "weight": 0}}
    cut = joined(False, parts=parts, short=Verdict("unscored"), watched=Verdict("truncated"))
    assert (cut.outcome, cut.score) == ("unscored", None)
    cut = joined(False, parts=parts, short=Verdict("truncated"), watched=Verdict("unscored"))
    assert (cut.outcome, cut.score) == ("truncated", None)


def test_a_separator_may_be_lines() -> None:
    keys = ['reward.parts.quality={model: m, separator: "\\n\\n"}', 'reward.parts.other={model: m, separator: "|"}']
    parts = load_config(TrainConfig, None, keys).reward.parts
    assert (parts["quality"].separator, parts["other"].separator) == ("\n\n", "|")
    assert (
        load_config(TrainConfig, None, ["reward.parts.m.model=m", 'reward.parts.m.separator="\\t"'])
        .reward.parts["m"]
        .separator
        == "\t"
    )


def test_parts_score_in_one_call_and_only_what_they_are_asked_for() -> None:
    parts = {
        "words": {"metric": "completion_words", "score_truncated": True},
        "match": {"metric": "exact_match"},
        "function": {"function": "reward_functions:length"},
    }
    with judge(reward={"parts": parts}).start(attempt("p", "abc", "abc")) as scorer:
        asked = [
            Attempt(Problem("p", "two words"), "two words", [1, 2], 0),
            Attempt(Problem("p", "two words"), "cut off here", [1, 2, 3], 0, finished=False),
            Attempt(Problem("q"), "no answer known", [1], 1),
        ]
        verdicts = scorer.judge(asked)
    assert [verdict.parts for verdict in verdicts] == [
        {"words": 2.0, "match": 1.0, "function": 6.0},
        {"words": 3.0, "match": None, "function": None},
        {"words": 3.0, "match": None, "function": 12.0},
    ]
    assert [(verdict.outcome, verdict.score) for verdict in verdicts] == [
        ("scored", 9.0),
        ("truncated", 3.0),
        ("scored", 15.0),
    ]


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (1e12, "scored"),
        (-1e12, "scored"),
        (1.1e12, "error"),
        (-1e300, "error"),
        (math.inf, "error"),
        (math.nan, "error"),
    ],
)
def test_a_score_from_elsewhere_that_is_beyond_all_bounds_is_a_failure(
    value: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardServer, "score", lambda self, items: [Score(value) for _ in items])
    with judge(reward={"parts": {"far": {"url": "http://127.0.0.1:1/"}}}).start(None) as scorer:
        (verdict,) = scorer.judge([attempt("p", "a", "b")])
    assert verdict.outcome == outcome and ("expected a finite number of at most 1e+12" in verdict.detail) == (
        outcome == "error"
    )


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"parts": {"a": {}}}, "names none of check, function, metric"),
        ({"parts": {"a": {"check": True, "metric": "bleu"}}}, "names check and metric of check, function"),
        ({"parts": {"a b": {"check": True}}}, "reward.parts: 'a b' is no name"),
        ({"parts": {"a": {"check": True, "weight": 0}}}, "every part has weight 0"),
        ({"parts": {"a": {"check": True}, "b": {"check": True}}}, "parts a and b are both the task's check"),
        ({"parts": {"a": {"check": True}}, "function": "m:f"}, "function=m:f and parts are both set"),
        ({"parts": {"a": {"check": True}}, "correct_above": 1}, "the check says what is correct"),
        ({"parts": {"a": {"metric": "bleu"}}, "balance_negatives": True}, "balance_negatives needs a check"),
        ({"kind": "function"}, "reward.kind=function needs reward.function"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(reward: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        judge(reward=reward)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("reward", "problems", "message"),
    [
        ({"function": "reward_functions:applies_now_and_then"}, [Problem(f"p{i}", "a") for i in range(90)], ""),
        (
            {"function": "reward_functions:applies_now_and_then"},
            [Problem(f"p{i}0", "a") for i in range(90)],
            "any of 32 prompts that it was tried on: function reward_functions:applies_now_and_then gave None",
        ),
        ({"function": "reward_functions:applies_to_others"}, [Problem("p", "a"), Problem("q", "b")], ""),
        (
            {"function": "reward_functions:forgets_to_return"},
            [Problem("p", "a")],
            r"As the completion stood its known answer, no text, and the prompt; first prompt: 'p'$",
        ),
        (
            {"function": "reward_functions:forgets_to_return"},
            [Problem("p"), Problem("q")],
            "any of 2 prompts .*: function reward_functions:forgets_to_return gave None each time",
        ),
        (
            {"parts": {"f": {"function": "reward_functions:forgets_to_return"}, "m": {"metric": "exact_match"}}},
            [Problem("p")],
            r"f \(function reward_functions:forgets_to_return\), m \(metric exact_match\) gave None",
        ),
        (
            {"parts": {"f": {"function": "reward_functions:forgets_to_return"}, "m": {"metric": "exact_match"}}},
            [Problem("p"), Problem("q", "a")],
            "",
        ),
        (
            {"parts": {"f": {"function": "reward_functions:forgets_to_return"}, "c": {"check": True, "weight": 0}}},
            [Problem("+ P 1 a", "a")],
            r"prompts.*: f \(function reward_functions:forgets_to_return\) gave None",
        ),
        ({"function": "reward_functions:forgets_to_return"}, [], ""),
    ],
)
def test_a_reward_that_applies_to_nothing_is_refused_after_several_problems(
    reward: dict[str, Any], problems: list[Problem], message: str
) -> None:
    asked = judge(reward=reward)
    with (
        asked.start(trial_of(problems)) as scorer,
        pytest.raises(UserError, match=message) if message else nullcontext(),
    ):
        asked.check_applies(scorer, problems)
