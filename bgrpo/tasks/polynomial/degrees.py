"""Degrees of problems, by which data files are filtered and counted, line by line, their answers unchecked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from bgrpo.tasks.base import Problem, Record
from bgrpo.tasks.polynomial.data_files import read_lines
from bgrpo.tasks.polynomial.generator import category
from bgrpo.tasks.polynomial.notation import PART, SEPARATOR, NotationError, Polynomial, parse, split_prompt
from bgrpo.tasks.polynomial.verifier import read_inner, read_target, split_answer

QUANTITIES = {
    "outer": "degree of the outer polynomial: the polynomial's over the inner's, or of the outer that an answer gives",
    "inner": "degree of the inner polynomial; the highest of several",
    "degree": "degree of the polynomial itself",
    "variables": "number of its variables",
}
GRID = ("outer", "inner")


def read_records(path: Path) -> Iterator[Record]:
    """Lines of a data file with :data:`SEPARATOR`, whichever separator they have there.

    Raises:
        UserError: see :func:`bgrpo.tasks.polynomial.data_files.read_lines`.
    """
    for line in read_lines(path):
        prompt = f"{line.expanded} {SEPARATOR}"
        problem = Problem(prompt, line.answer, _category(line.expanded, line.answer), line=line.number)
        yield Record(f"{prompt} {line.answer}".rstrip(), problem)


def quantities_of(problem: Problem) -> dict[str, int]:
    """:data:`QUANTITIES` of a problem; those are absent that its texts do not tell, or that are no whole numbers."""
    try:
        f = read_target(problem.prompt)
    except NotationError:
        return {}
    found = {"degree": f.degree, "variables": len(f.names)}
    try:
        parts = split_answer(problem.answer) if problem.answer else []
        inners = [read_inner(part, f.names).degree for part in parts[-1:] if len(parts) <= 2]
        inners = inners or [_degree(part) for part in parts[1:]]
        inner = max(inners, default=0)
        if inner:
            found["inner"] = inner
        if len(parts) > 1:
            found["outer"] = _degree(parts[0])
        elif inner and f.degree % inner == 0:
            found["outer"] = f.degree // inner
    except NotationError:
        pass
    return found


def key_of(problem: Problem) -> str:
    """The polynomial itself where it can be read, whatever its writing; else the text."""
    try:
        f = parse(split_prompt(problem.prompt)).without_idle_variables()
    except NotationError:
        return problem.prompt
    return f"{f.names} {sorted(f.terms.items())}"


def _category(expanded: str, answer: str) -> str:
    """As of a loaded line; empty where the polynomial cannot be read."""
    found = quantities_of(Problem(expanded, answer))
    if not found:
        return ""
    alone = found["variables"] <= 1 and answer.count(PART) < 2  # one inner polynomial
    return sys.intern(category(found["variables"], found["degree"], found.get("inner", 0) if alone else 0))


@lru_cache(maxsize=512)
def _degree(text: str) -> int:
    polynomial: Polynomial = parse(text)
    return polynomial.degree
