"""The exact check of an answer to "decompose this polynomial".

An answer is ``inner`` or ``outer & inner0 & inner1 & …``. ``inner`` alone answers when some g of one variable gives
f = g(inner); with an outer the composition must equal f, where ``b<i>`` stands for ``inner<i>``, and ``b`` for the
inner when there is one only. What composes is *correct* only if it says something about f: a linear inner, f itself,
or an affine outer fit every polynomial, and a policy that is paid for them soon writes nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from bgrpo.tasks.base import Outcome
from bgrpo.tasks.polynomial.composition import Target, composes, has_left_factor, is_affine_image
from bgrpo.tasks.polynomial.notation import (
    MAX_CHARACTERS,
    MAX_VARIABLES,
    PART,
    Budget,
    NotationError,
    Polynomial,
    parse,
    split_prompt,
)

Ring = Literal["ZZ", "QQ"]


def check(prompt: str, completion: str, ring: Ring = "ZZ") -> Outcome:
    """Outcome of one answer; never raises, and takes milliseconds at most on any two texts.

    - ``unparseable``: prompt or answer is not in the notation, or passes a limit on its length, degree, variables,
      coefficients or terms (see ``notation`` and ``composition``).
    - ``wrong``: it does not compose to f. So is an answer whose outer depends on a variable without inner, or an
      inner on one that the prompt lacks, unless it cancels out.
    - ``trivial``: it composes, but deg inner < 2 or deg inner = deg f; with an outer, deg outer < 2, or no used inner
      has degree 2 or more, or a used inner is f up to a factor and a constant. An inner is used if its variable
      occurs in the expanded outer. Degrees in several variables are total degrees.
    - ``correct``: everything else.

    Args:
        prompt: f, with or without separator at its end.
        completion: the answer, without end token.
        ring: where the coefficients of g may lie when the answer is an inner alone: integers or rationals.
    """
    try:
        f = read_target(prompt)
    except NotationError:
        return Outcome.UNPARSEABLE
    return check_answer(f, completion, ring)


def check_answer(f: Target, completion: str, ring: Ring) -> Outcome:
    """As :func:`check`, for a prompt that was read."""
    try:
        parts = split_answer(completion)
        if len(parts) == 1:
            return _check_inner(f, read_inner(parts[0], f.names), ring)
        outer, *inners = _parse_parts(f, parts)
        return _check_composition(f, outer, inners)
    except NotationError:
        return Outcome.UNPARSEABLE


@lru_cache(maxsize=512)
def read_target(prompt: str) -> Target:
    """The polynomial of a prompt; kept for a while, since a group's completions share it.

    Raises:
        NotationError: it cannot be read.
    """
    return Target(parse(split_prompt(prompt)))


@lru_cache(maxsize=16)
def read_inner(text: str, names: tuple[str, ...]) -> Polynomial:
    """The inner polynomial of an answer, whose first variables are ``names``; kept for its degree to be asked.

    Raises:
        NotationError: it cannot be read.
    """
    return parse(text, names)


def split_answer(completion: str) -> list[str]:
    """``[inner]`` or ``[outer, inner0, inner1, …]``.

    Raises:
        NotationError: too long, or too many parts.
    """
    if len(completion) > MAX_CHARACTERS:
        raise NotationError(f"{len(completion)} characters, at most {MAX_CHARACTERS} are read")
    parts = completion.split(PART)
    if len(parts) > MAX_VARIABLES:
        raise NotationError(f"{len(parts)} parts, at most {MAX_VARIABLES} are read")
    return parts


def _parse_parts(f: Target, texts: list[str]) -> list[Polynomial]:
    """Outer, with variables of its own, and the inners, whose variables continue those of f."""
    budget = Budget()
    parts = [parse(texts[0], (), budget)]
    names = f.names
    for text in texts[1:]:
        parts.append(parse(text, names, budget))
        names = parts[-1].names
    return parts


def _check_inner(f: Target, h: Polynomial, ring: Ring) -> Outcome:
    degree = h.degree
    if f.degree == 0:
        return Outcome.TRIVIAL  # g may be constant
    if degree == 0 or not has_left_factor(f, h, integral=ring == "ZZ"):
        return Outcome.WRONG
    return Outcome.CORRECT if 2 <= degree < f.degree else Outcome.TRIVIAL


def _check_composition(f: Target, outer: Polynomial, inners: list[Polynomial]) -> Outcome:
    outer = outer.without_idle_variables()
    place_of = {f"b{i}": i for i in range(len(inners))} | ({"b": 0} if len(inners) == 1 else {})
    if not place_of.keys() >= set(outer.names):
        return Outcome.WRONG
    used = [inners[place_of[name]] for name in outer.names]
    if not composes(f, outer, used, inners[-1].names):
        return Outcome.WRONG
    if outer.degree < 2 or max((inner.degree for inner in used), default=0) < 2:
        return Outcome.TRIVIAL
    if any(is_affine_image(f.terms, inner.terms) for inner in used):
        return Outcome.TRIVIAL
    return Outcome.CORRECT
