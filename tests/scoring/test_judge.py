"""One judge: what is checked, how verdicts come back to their completions, and which rewards follow."""

from __future__ import annotations

import math
from typing import Any

import pytest
from learner_cases import EOS, TOKENIZER

from bgrpo.config import TrainConfig
from bgrpo.groups import Completion, Group, Verdict
from bgrpo.scoring import judge as judge_module
from bgrpo.scoring.judge import Judge, finished_texts, trial_of
from bgrpo.scoring.readable_groups import with_texts
from bgrpo.tasks.base import Problem

PROBLEMS = [Problem("p"), Problem("q")]


def group(*finished: bool) -> Group:
    completions = [
        Completion([5 + i, EOS] if done else [5 + i, 6], [-1.0, -1.0], done) for i, done in enumerate(finished)
    ]
    return with_texts(Group([2], completions), TOKENIZER)


def judge(**tree: Any) -> Judge:
    return Judge(TrainConfig.model_validate(tree))


def test_unfinished_completions_are_truncated_without_a_check() -> None:
    groups = [group(True, False, True), group(False)]
    assert finished_texts(PROBLEMS, groups) == [("p", "t5"), ("p", "t7")]
    scored = judge().score([4, 9], groups, [Verdict("correct"), Verdict("timeout")], version=7)
    assert [g.outcomes for g in scored] == [["correct", "truncated", "timeout"], ["truncated"]]
    assert [(g.index, g.prompt_ids, g.version) for g in scored] == [(4, [2], 7), (9, [2], 7)]
    assert [completion.text for completion in scored[0].completions] == ["t5", "t6 t6", "t7"]


def test_the_rank_counts_whatever_was_truncated_before() -> None:
    (scored,) = judge(rollout={"group_size": 4}).score([0], [group(False, True, True)], [Verdict("correct")] * 2, 0)
    assert scored.rewards == pytest.approx([0.0, math.exp(-1 / 4), math.exp(-2 / 4)])


def test_a_user_functions_values_are_kept_and_are_the_rewards() -> None:
    verdicts = [Verdict("correct", 0.5), Verdict("error", None, "ValueError")]
    of_function = judge(reward={"function": "m:f", "wrong_reward": -1.0})
    (scored,) = of_function.score([0], [group(True, False, True)], verdicts, version=0)
    assert [completion.verdict for completion in scored.completions] == [verdicts[0], Verdict("truncated"), verdicts[1]]
    assert scored.rewards == [0.5, -1.0, -1.0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_verdicts_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="verdicts than finished completions"):
        judge().score([0], [group(True, True)], [Verdict("wrong")] * count, version=0)


def test_a_completion_without_verdict_has_no_outcome() -> None:
    with pytest.raises(ValueError, match="has not been judged"):
        _ = group(True).completions[0].outcome


@pytest.mark.parametrize(
    ("tree", "target", "limits"),
    [
        ({"reward": {"function": "m:f"}, "verifier": {"timeout_s": 2}}, "m:f", (2.0, None)),
        ({"task": {"options": {"ring": "QQ"}}}, "task:polynomial", (5.0, 4 * 1024**3)),
        ({"task": {"name": "m:C"}}, "task:m:C", (5.0, None)),
    ],
)
def test_the_check_process_is_what_the_configuration_says(
    tree: dict[str, Any], target: str, limits: tuple[float, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(
        target: str,
        options: Any = None,
        timeout_s: float = 5.0,
        memory_bytes: int | None = None,
        trial: tuple[str, str] | None = None,
    ) -> None:
        asked.append((target, options or {}, (timeout_s, memory_bytes), trial))

    monkeypatch.setattr(judge_module, "CheckProcess", note)
    judge(**tree).start(("p", "c"))
    assert asked == [(target, tree.get("task", {}).get("options", {}), limits, ("p", "c"))]


@pytest.mark.parametrize(
    ("answers", "trial"), [([], None), (["", ""], ("0", "")), (["", "x", "y"], ("1", "x")), (["z"], ("0", "z"))]
)
def test_checks_are_tried_on_the_first_known_answer(answers: list[str], trial: tuple[str, str] | None) -> None:
    assert trial_of([Problem(str(i), answer) for i, answer in enumerate(answers)]) == trial
