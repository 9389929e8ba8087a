"""What there is to score: completions with the problems that they answer, group by group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, NamedTuple

from bgrpo.groups import Group
from bgrpo.tasks.base import Problem
from bgrpo.tasks.problem_files import TUPLES


class Attempt(NamedTuple):
    """One completion to score.

    Attributes:
        problem: what it answers, with all fields of its row.
        text: of the completion, without end token.
        tokens: ids of its tokens, end token included.
        group: number of its group within the request; the completions of a group stand together, best first.
        finished: False when ``max_new_tokens`` cut it off.
    """

    problem: Problem
    text: str
    tokens: Sequence[int] = ()
    group: int = 0
    finished: bool = True


def attempts_of(problems: Sequence[Problem], groups: Sequence[Group]) -> list[Attempt]:
    """Every completion of the groups, in order."""
    return [
        Attempt(problem, completion.text, completion.tokens, number, completion.finished)
        for number, (problem, group) in enumerate(zip(problems, groups, strict=True))
        for completion in group.completions
    ]


def trial_of(problems: Sequence[Problem]) -> Attempt | None:
    """What every score must come out of, before anything expensive: the first known answer, else an empty text.

    None where there are no problems.
    """
    tried = next((problem for problem in problems if problem.answer), problems[0] if problems else None)
    return None if tried is None else Attempt(tried, tried.answer)


def by_group(attempts: Iterable[Attempt]) -> list[list[Attempt]]:
    """The attempts of each group."""
    return [list(group) for _, group in groupby(attempts, key=lambda attempt: attempt.group)]


def to_json(attempts: Sequence[Attempt], with_tokens: bool) -> dict[str, Any]:
    """Plain values: each problem once, and for each attempt its problem's position, its text and perhaps its tokens."""
    positions: dict[tuple[int, str], int] = {}
    problems: list[dict[str, Any]] = []
    items: list[list[Any]] = []
    for attempt in attempts:
        key = (attempt.group, attempt.problem.prompt)
        if key not in positions:
            positions[key] = len(problems)
            problems.append({name: getattr(attempt.problem, name) for name in _PROBLEM_FIELDS})
        items.append([positions[key], attempt.text, list(attempt.tokens) if with_tokens else []])
    return {"problems": problems, "items": items}


def from_json(tree: dict[str, Any]) -> list[Attempt]:
    """What :func:`to_json` gave, but for the numbers of the groups, which count from 0."""
    problems = [Problem(**row | {name: tuple(row[name]) for name in TUPLES}) for row in tree["problems"]]
    return [Attempt(problems[position], text, tokens, position) for position, text, tokens in tree["items"]]


_PROBLEM_FIELDS = [field.name for field in fields(Problem)]
