"""The forms that users' reward functions have, and what they may return. Their processes: ``check_process.py``.

- ``f(prompt, completion)``: one completion at a time; further parameters are filled from the problem's columns.
- ``f(prompts, completions, **columns)``: as TRL calls it: all completions of several groups, each with its prompt; a
  list with one value per completion is returned. A parameter gets the column of its name.

Either may be ``async``. None means that the score does not apply.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from copy import deepcopy
from typing import Any

from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.rewards import LARGEST_REWARD
from bgrpo.tasks.base import Problem

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_LISTS = ("prompts", "completions", "completion_ids")


class MisreturnedError(Exception):
    """A check returned something else than it should, or asks for a column that no problem has; the message says."""


def as_score(value: Any) -> float:
    """What a reward function returned as a number.

    A number is a bool, or whatever has ``__float__`` or ``__index__``: NumPy's and torch's scalars and 0-d arrays,
    Decimal, Fraction. Text, None, complex numbers and everything with a length are none.

    Raises:
        MisreturnedError: it is no number, not finite, or beyond 1e12 in size. Where the value's own methods
            raise, what they do.
    """
    kind = type(value).__name__
    if not _has_length(value) and callable(getattr(type(value), "item", None)):
        masked = bool(getattr(value, "mask", False))  # NumPy's: its item is any number, mostly 0
        value = None if masked else value.item()  # of a scalar or a 0-d array, which may hold text
    if _has_length(value) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise MisreturnedError(f"the reward function returned {kind}, expected a float")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise MisreturnedError(f"the reward function returned {score}, expected a finite float")
    if abs(score) > LARGEST_REWARD:
        raise MisreturnedError(f"the reward function returned {score:g}, expected at most {LARGEST_REWARD:g} in size")
    return score


def _has_length(value: Any) -> bool:
    try:
        len(value)
    except TypeError:  # of an array without dimensions too
        return False
    return True


def takes_groups(function: Callable[..., Any]) -> bool:
    """Whether it is to be called with all completions of a request at once."""
    return bool(_parameters(function).keys() & set(_LISTS))


def reward_function(function: Callable[..., Any]) -> Callable[[Sequence[Attempt]], list[Any]]:
    """Calls a function of either form, and returns one value per attempt, as the function returned it.

    What is returned raises :class:`MisreturnedError` where the function does not return one value per attempt, and
    whatever the function raises.
    """
    if not takes_groups(function):
        return lambda attempts: [_finished(_call_once(function, attempt)) for attempt in attempts]

    parameters = list(_parameters(function).values())

    def call(attempts: Sequence[Attempt]) -> list[Any]:
        columns = _columns(attempts)
        _check_columns(parameters, columns)
        values = _finished(function(**_chosen(function, columns)))
        if isinstance(values, str | bytes | bytearray | Mapping | Set) or not hasattr(values, "__len__"):
            raise MisreturnedError(f"the reward function returned {type(values).__name__}, expected a list of numbers")
        values = list(values)
        if len(values) != len(attempts):
            raise MisreturnedError(f"the reward function returned {len(values)} values for {len(attempts)} completions")
        return values

    return call


def _call_once(function: Callable[..., Any], attempt: Attempt) -> Any:
    """The first two parameters are the prompt and the completion, whatever their names."""
    further = [p for p in list(_parameters(function).values())[2:] if p.kind in _NAMED]
    columns = columns_of(attempt.problem) if further else {}
    _check_columns(further, columns)
    named = {p.name: deepcopy(columns[p.name]) for p in further if p.name in columns}
    return function(_prompt(attempt.problem), attempt.text, **named)


def _check_columns(parameters: Sequence[inspect.Parameter], columns: Mapping[str, Any]) -> None:
    """Each of these parameters has a column, or a default."""
    for parameter in parameters:
        if parameter.kind in _NAMED and parameter.default is parameter.empty and parameter.name not in columns:
            there = ", ".join(map(repr, columns))
            raise MisreturnedError(
                f"the reward function takes {parameter.name!r}, which is no column of the problem: it has {there}"
            )


def _columns(attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
    """What TRL passes: lists with one entry per completion. A column that a row lacks is None there.

    What a function changes in its arguments is changed in that call alone.
    """
    rows = [columns_of(attempt.problem) for attempt in attempts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [deepcopy(row.get(name)) for row in rows] for name in names} | {
        "prompts": [_prompt(attempt.problem) for attempt in attempts],
        "completions": [_completion(attempt) for attempt in attempts],
        "completion_ids": [list(attempt.tokens) for attempt in attempts],
        "group_index": [attempt.group for attempt in attempts],
    }


def _chosen(function: Callable[..., Any], columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Those that the function takes."""
    parameters = _parameters(function)
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return columns
    return {name: column for name, column in columns.items() if name in parameters}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of a function in C that does not say
        return {}


def columns_of(problem: Problem) -> dict[str, Any]:
    """The columns of a problem's row; its answers under the names that they have here, too."""
    known = {"answer": problem.answer or None, "answers": problem.answers, "category": problem.category}
    return known | problem.fields


def _prompt(problem: Problem) -> Any:
    return [dict(message) for message in problem.messages] or problem.prompt


def _completion(attempt: Attempt) -> Any:
    """A chat is answered by a chat of one message, as in TRL."""
    return [{"role": "assistant", "content": attempt.text}] if attempt.problem.messages else attempt.text


def _finished(value: Any) -> Any:
    """What an async function comes to."""
    if not inspect.isawaitable(value):
        return value
    import asyncio

    return asyncio.run(_awaited(value))


async def _awaited(value: Any) -> Any:
    return await value
