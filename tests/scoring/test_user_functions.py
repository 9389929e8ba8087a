"""Users' reward functions in every form, called here and through their killable process; TRL's own run unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.check_process import CheckProcess
from bgrpo.scoring.user_functions import MisreturnedError, reward_function, takes_groups
from bgrpo.tasks.base import Problem

TEXT = Problem("2 + 2 =", "4", "sums", fields={"solution": "4", "level": 1})
CHAT = Problem("user: hi", "ho", messages=({"role": "user", "content": "hi"},), fields={"solution": "ho"})
ATTEMPTS = [
    Attempt(TEXT, "four", [1, 2], 0),
    Attempt(TEXT, "4", [3], 0),
    Attempt(CHAT, "ho", [4], 1),
]


def of_two(prompt: str, completion: str) -> float:
    return float(len(prompt) + len(completion))


def other_names(p: str, c: str) -> float:
    return float(c == "4")


def with_columns(prompt: str, completion: str, solution: str, *, level: int = 7) -> float:
    return float(completion == solution) + level


def with_answer(prompt: str, completion: str, answer: str) -> float | None:
    return float(completion == answer) if completion != "four" else None


async def slow(prompt: str, completion: str) -> float:
    return 1.0


def trl_form(prompts: list, completions: list, completion_ids: list, **columns: list) -> list[float]:
    assert columns["group_index"] == [0, 0, 1] and columns["level"] == [1, 1, None]
    assert prompts == ["2 + 2 =", "2 + 2 =", [{"role": "user", "content": "hi"}]]
    assert completions == ["four", "4", [{"role": "assistant", "content": "ho"}]]
    return [float(len(ids)) for ids in completion_ids]


def only_completions(completions: list) -> list[float | None]:
    return [None, 1.0, 2.0]


async def slow_groups(completions: list, **_: Any) -> np.ndarray:
    return np.arange(len(completions))


def tensor(prompts: list, **_: Any) -> torch.Tensor:
    return torch.ones(len(prompts))


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (of_two, [11.0, 8.0, None]),
        (other_names, [0.0, 1.0, 0.0]),
        (with_columns, [1.0, 2.0, 8.0]),
        (with_answer, [None, 1.0, 1.0]),
        (slow, [1.0, 1.0, 1.0]),
        (trl_form, [2.0, 1.0, 1.0]),
        (only_completions, [None, 1.0, 2.0]),
        (slow_groups, [0, 1, 2]),
        (tensor, [1.0, 1.0, 1.0]),
    ],
)
def test_every_form_gives_one_value_per_completion(function: Callable[..., Any], values: list[float | None]) -> None:
    attempts = ATTEMPTS[:2] if function is of_two else ATTEMPTS
    assert list(reward_function(function)(attempts)) == values[: len(attempts)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions: 1.0, "returned float, expected a list of numbers"),
        (lambda completions: "123", "returned str, expected a list"),
        (lambda completions: None, "returned NoneType, expected a list"),
        (lambda completions: [1.0], "returned 1 values for 3 completions"),
        (lambda completions: (value for value in completions), "returned generator, expected a list"),
        (lambda completions: dict(enumerate(completions)), "returned dict, expected a list"),
        (lambda completions: set(range(len(completions))), "returned set, expected a list"),
        (lambda completions: frozenset(range(len(completions))), "returned frozenset, expected a list"),
        (lambda completions: dict(enumerate(completions)).keys(), "returned dict_keys, expected a list"),
        (lambda completions: bytes(len(completions)), "returned bytes, expected a list"),
        (lambda completions: bytearray(len(completions)), "returned bytearray, expected a list"),
    ],
)
def test_what_is_no_list_of_values_is_refused(function: Callable[..., Any], message: str) -> None:
    assert takes_groups(function)
    with pytest.raises(MisreturnedError, match=message):
        reward_function(function)(ATTEMPTS)


@pytest.mark.parametrize(
    "function",
    [
        lambda prompt, completion, ground_truth: 1.0,
        lambda prompt, completion, *, ground_truth: 1.0,
        lambda completions, ground_truth: [1.0] * len(completions),
        lambda prompts, completions, ground_truth, **columns: [1.0] * len(completions),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(function: Callable[..., Any]) -> None:
    told = r"takes 'ground_truth', which is no column of the problem: it has 'answer', 'answers', 'category'"
    with pytest.raises(MisreturnedError, match=told):
        reward_function(function)(ATTEMPTS)


def take_one(prompt: str, completion: str, facts: list[int]) -> float:
    facts.pop()
    return len(facts)


def take_one_each(completions: list, facts: list[list[int]]) -> list[float]:
    return [take_one("", "", each) for each in facts]


@pytest.mark.parametrize("function", [take_one, take_one_each])
def test_what_a_function_changes_in_its_arguments_reaches_no_other_completion(function: Callable[..., Any]) -> None:
    problem = Problem("p", "a", fields={"facts": [1, 2, 3]})
    call = reward_function(function)
    assert [list(call([Attempt(problem, "x"), Attempt(problem, "y")])) for _ in range(2)] == [[2, 2], [2, 2]]


def test_trls_own_reward_functions_run_unchanged() -> None:
    from trl.rewards import get_soft_overlong_punishment, think_format_reward

    chats = [
        Attempt(CHAT, "<think>\nreason\n</think>\nho", [1] * 9, 0),
        Attempt(CHAT, "ho", [1] * 4, 0),
    ]
    assert list(reward_function(think_format_reward)(chats)) == [1.0, 0.0]
    overlong = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=5)
    assert list(reward_function(overlong)(chats)) == [pytest.approx(-0.8), 0.0]


def test_trls_accuracy_reward_runs_unchanged() -> None:
    pytest.importorskip("math_verify")
    from trl.rewards import accuracy_reward

    problem = Problem("user: 1/2+1/3?", messages=CHAT.messages, fields={"solution": r"$\frac{5}{6}$"})
    attempts = [Attempt(problem, r"\boxed{\frac{5}{6}}"), Attempt(problem, r"\boxed{\frac{1}{6}}")]
    assert list(reward_function(accuracy_reward)(attempts)) == [1.0, 0.0]


MODULE = """
import asyncio, os, time
calls = []
def groups(prompts, completions, group_index, **columns):
    calls.append(len(completions))
    if "raise" in completions: raise ValueError("no such")
    if "hang" in completions: time.sleep(60)
    if "exit" in completions: os._exit(3)
    if "short" in completions: return [1.0]
    return [None if c == "none" else float("nan") if c == "nan" else float(len(calls)) for c in completions]
async def later(prompts, completions, **columns):
    await asyncio.sleep(0.01)
    return [float(g) for g in columns["group_index"]]
def wants_ids(completion_ids): return [float(sum(ids)) for ids in completion_ids]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "group_rewards_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "group_rewards_of_a_user"


def three_groups(*middle: str) -> list[Attempt]:
    texts = [("a", "b"), middle, ("c",)]
    return [Attempt(Problem(f"p{i}"), text, [i, 5], i) for i, group in enumerate(texts) for text in group]


def test_whole_groups_go_to_one_call_in_a_process(module: str) -> None:
    with CheckProcess(f"{module}:groups") as process:
        verdicts = process.run(three_groups("none", "nan", "x"))
    assert [(v.outcome, v.score) for v in verdicts] == [
        ("scored", 1.0),
        ("scored", 1.0),
        ("unscored", None),
        ("error", None),
        ("scored", 1.0),
        ("scored", 1.0),
    ]
    with CheckProcess(f"{module}:later") as process:
        assert [v.score for v in process.run(three_groups("x"))] == [0.0, 0.0, 1.0, 2.0]
    with CheckProcess(f"{module}:wants_ids") as process:
        assert [v.score for v in process.run(three_groups("x"))] == [5.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("middle", "outcome", "detail"),
    [
        ("raise", "error", "ValueError: no such"),
        ("hang", "timeout", "the check took longer than 2 s"),
        ("exit", "error", "the check process exited with status 3"),
        ("short", "error", "returned 1 values for 2 completions"),
    ],
)
def test_a_group_that_fails_disturbs_no_other(module: str, middle: str, outcome: str, detail: str) -> None:
    with CheckProcess(f"{module}:groups", timeout_s=2.0) as process:
        verdicts = process.run(three_groups(middle, "x"))
    assert [v.outcome for v in verdicts] == ["scored", "scored", outcome, outcome, "scored"]
    assert all(detail in verdict.detail for verdict in verdicts[2:4])
