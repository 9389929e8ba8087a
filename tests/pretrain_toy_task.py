"""A task small enough to learn in seconds: write two digits in reverse. Used by the pre-training tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Outcome, Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


class ReverseTask:
    """Prompt ``P d e … ⁇``, answer the digits in reverse order."""

    name = "reverse"

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer()

    def check(self, prompt: str, completion: str) -> Outcome:
        return Outcome.CORRECT if prompt.split()[1:-1][::-1] == completion.split() else Outcome.WRONG

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        prompts = [line for line in path.read_text().splitlines() if line]
        return LoadedProblems([_problem(prompt.split()[1:-1]) for prompt in prompts])

    def generate(self, options: dict[str, Any], count: int, seed: int, exclude: Sequence[str] = ()) -> list[Problem]:
        random = np.random.default_rng(seed)
        seen, problems = set(exclude), []
        for _ in range(20 * count):
            problem = _problem([str(digit) for digit in random.integers(0, 10, options.get("digits", 3))])
            if problem.prompt not in seen:
                seen.add(problem.prompt)
                problems.append(problem)
            if len(problems) == count:
                return problems
        raise UserError(f"fewer than {count} problems exist")


def _problem(digits: Sequence[str]) -> Problem:
    return Problem(f"P {' '.join(digits)} ⁇", " ".join(reversed(digits)), str(len(digits)))
