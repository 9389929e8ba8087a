"""A user's task may raise or return anything: one line says which method of which task did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bgrpo.config import TaskSection
from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Problem, ability, generate_problems, load_file, load_task


class Theirs:
    """Gives what it is told to, or raises it."""

    name = "theirs"

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def load(self, path: Path, **options: Any) -> Any:
        return self._give()

    def generate(self, options: dict[str, Any], count: int, seed: int, exclude: Any = ()) -> Any:
        return self._give()

    def check(self, prompt: str, completion: str) -> Any:
        return "wrong"

    def _give(self) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (ValueError("unknown options"), "failed: ValueError: unknown options (.*test_task_calls.py:.* in _give)"),
        (KeyError("degrees"), "failed: KeyError: 'degrees'"),
        (None, "returned a NoneType"),
        ([("p", "a")], "returned a list of tuple"),
        ("text", "returned a str"),
        (UserError("mine: say this"), "^mine: say this$"),
    ],
)
def test_what_a_task_does_wrong_is_one_line(gives: Any, message: str) -> None:
    for call in (lambda: generate_problems(Theirs(gives), {}, 1, 0), lambda: load_file(Theirs(gives), Path("x"))):
        with pytest.raises(UserError, match=message) as told:
            call()
        assert "\n" not in str(told.value)


def test_problems_of_another_kind_inside_are_noticed_too() -> None:
    with pytest.raises(UserError, match="load\\(\\) returned a list of str, expected LoadedProblems of Problem"):
        load_file(Theirs(LoadedProblems(["p"])), Path("x"))  # type: ignore[list-item]


def test_right_ones_come_through() -> None:
    problems = [Problem("p", "a")]
    assert generate_problems(Theirs(problems), {}, 1, 0) == problems
    assert load_file(Theirs(LoadedProblems(problems)), Path("x")).problems == problems


def test_a_missing_ability_says_what_needs_it() -> None:
    with pytest.raises(UserError, match="'theirs' has no method verify\\(\\), which bgrpo verify needs"):
        ability(Theirs(None), "verify", "bgrpo verify")


def test_the_task_of_the_quickstart_has_all_abilities() -> None:
    task = load_task(TaskSection().name)
    for method in ("generate", "tokenizer", "write_data", "verify", "measure_speed", "generator_help"):
        assert callable(ability(task, method, "this test"))
