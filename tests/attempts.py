"""Attempts for tests of scoring, from plain texts."""

from __future__ import annotations

from bgrpo.scoring.attempts import Attempt
from bgrpo.tasks.base import Problem


def attempt(prompt: str, text: str, answer: str = "") -> Attempt:
    return Attempt(Problem(prompt, answer), text)


def attempts(*pairs: tuple[str, str]) -> list[Attempt]:
    """(prompt, completion) each, all of one group."""
    return [attempt(*pair) for pair in pairs]
