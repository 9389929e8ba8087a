"""What a task is: problems to solve and an exact check of a completion. Nothing here knows about polynomials."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from bgrpo.errors import UserError


class Outcome(StrEnum):
    """What became of one completion. Always counted apart, never folded into "wrong"."""

    CORRECT = "correct"
    WRONG = "wrong"
    TRIVIAL = "trivial"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a data file.

    Attributes:
        prompt: text that the tokenizer turns into the prompt (for polynomials it ends in the separator).
        answer: the known answer, without terminator; empty when none is known.
        category: label of the breakdown in evaluations, for example ``"2_3"`` (outer degree _ inner degree).
    """

    prompt: str
    answer: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """Problems of a file, and what its own answers verified as.

    Attributes:
        problems: the usable problems, in file order.
        outcomes: outcome of every line's own answer, over all lines (usable or not).
    """

    problems: list[Problem]
    outcomes: dict[str, int] = field(default_factory=dict)


class Task(Protocol):
    """A source of problems with a checker. Implementations must be cheap to construct (they live in every process)."""

    name: str

    def check(self, prompt: str, completion: str) -> Outcome:
        """Outcome of ``completion`` (text without end token) for ``prompt``; never raises on any text."""
        ...

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        """Read a data file, verify each line's own answer, drop trivial problems.

        Raises:
            UserError: missing, empty or malformed file (with the line number); or a file for training some of whose
                own answers are wrong, unless ``allow_bad``.
        """
        ...

    def generate(self, options: dict[str, Any], count: int, seed: int, exclude: Sequence[str] = ()) -> list[Problem]:
        """``count`` distinct problems, a pure function of (options, count, seed), none with a prompt in ``exclude``."""
        ...


def load_task(name: str, options: dict[str, Any] | None = None) -> Task:
    """The task called ``name``: ``"polynomial"``, or ``"module:Class"`` for a user's own."""
    target = {"polynomial": "bgrpo.tasks.polynomial.task:PolynomialTask"}.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise UserError(f"task.name={name!r}: expected 'polynomial' or 'module:Class'")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"task.name={name!r}: cannot import it ({error})") from error
    task: Task = factory(**(options or {}))
    return task
