"""The verifier against SymPy on random pairs: right, wrong, nearly right, trivial, malformed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from reference.polynomial_oracle import Unknown, judge

from bgrpo.tasks.polynomial.verifier import check

FEW, MANY = 300, 12_000
"""Pairs in ``make test`` and in ``make test-all``."""

Problem = tuple[str, list[str]]  # polynomial, parts of a right answer


def integer(value: int) -> str:
    return f"{'N' if value < 0 else 'P'} {' '.join(str(abs(value)))}"


def total(parts: list[str]) -> str:
    return "+ " * (len(parts) - 1) + " ".join(parts)


def dense(draw: random.Random, degree: int, name: str) -> str:
    """A random polynomial of exactly this degree."""
    coefficients = [draw.randint(-6, 6) for _ in range(degree)] + [draw.choice([-4, -3, -2, -1, 1, 2, 3, 4])]
    terms = [f"* {integer(c)} ^ {name} {integer(i)}" for i, c in enumerate(coefficients) if c]
    return total(terms)


def sparse(draw: random.Random, degree: int, names: list[str]) -> str:
    """A random polynomial of this degree in several variables, not always homogeneous."""
    terms = []
    for _ in range(draw.randint(1, 3)):
        factors = [draw.choice(names) for _ in range(draw.choice([degree, degree, degree - 1]))]
        terms.append("* " * len(factors) + " ".join([integer(draw.choice([-3, -2, -1, 1, 2, 5])), *factors]))
    return total(terms)


def substitute(outer: str, inners: dict[str, str]) -> str:
    """The composition as an expression; nothing is expanded."""
    return " ".join(inners.get(token, token) for token in outer.split())


def one_variable(draw: random.Random) -> Problem:
    outer, inner = dense(draw, draw.randint(2, 3), "b"), dense(draw, draw.randint(2, 3), "a")
    return substitute(outer, {"b": inner}), [outer, inner]


def towers(draw: random.Random) -> Problem:
    """Three levels, so that there are several right inners."""
    outer, middle, inner = dense(draw, 2, "b"), dense(draw, 2, "b"), dense(draw, 2, "a")
    return substitute(outer, {"b": substitute(middle, {"b": inner})}), [substitute(outer, {"b": middle}), inner]


def several_variables(draw: random.Random) -> Problem:
    names = ["a0", "a1", "a2"]
    inners = [sparse(draw, draw.randint(1, 3), names) for _ in range(2)]
    outer = sparse(draw, draw.randint(1, 3), ["b0", "b1"])
    return substitute(outer, {"b0": inners[0], "b1": inners[1]}), [outer, *inners]


def singlets(draw: random.Random) -> Problem:
    outer, inner = dense(draw, 2, "b"), sparse(draw, draw.randint(1, 3), ["a1", "a2", "a3"])
    return substitute(outer, {"b": inner}), [outer, inner]


def drawn_answer(draw: random.Random, expanded: str, parts: list[str]) -> str:
    """A right answer or something like it."""
    outer, *inners = parts
    inner = inners[0]
    variable = "a" if len(inners) == 1 and "a0" not in expanded and "a1" not in expanded else "a1"
    shift, factor = integer(draw.randint(-5, 5)), integer(draw.choice([-3, -2, -1, 2, 3]))
    shapes: list[Callable[[], str]] = [
        lambda: inner,
        lambda: " & ".join(parts),
        lambda: f"+ {shift} {inner}",
        lambda: f"* {factor} {inner}",
        lambda: f"+ {shift} * {factor} {inner}",
        lambda: f"+ {inner} * {integer(draw.choice([-1, 1]))} {variable}",
        lambda: changed(draw, inner),
        lambda: changed(draw, " & ".join(parts)),
        lambda: changed(draw, " & ".join(parts)),
        lambda: broken(draw, inner),
        lambda: broken(draw, " & ".join(parts)),
        lambda: " & ".join([outer, *inners[::-1]]),
        lambda: variable,
        lambda: f"+ {shift} {variable}",
        lambda: f"* {factor} {variable}",
        lambda: expanded,
        lambda: f"+ {shift} * {factor} {expanded}",
        lambda: f"b0 & {expanded} & {variable}",
        lambda: f"+ {shift} b & {expanded}",
        lambda: f"+ b0 ^ b1 P 2 & {expanded} & P 0",
        lambda: f"+ b0 b1 & {expanded} & * P 0 {variable}",
        lambda: f"{substitute(expanded, {'a': 'b'})} & a",
        lambda: shift,
        lambda: f"{outer} & {inner}",
        lambda: f"^ {inner} P 2",
    ]
    return draw.choice(shapes)()


def changed(draw: random.Random, text: str) -> str:
    """One digit, sign or variable replaced."""
    tokens = text.split()
    place = draw.choice([i for i, token in enumerate(tokens) if token in [*"PN0123456789"] or token[0] in "ab"])
    alphabet = "PN" if tokens[place] in "PN" else "0123456789"
    replacement = draw.choice(["a", "a1", "b0", "b1"]) if tokens[place][0] in "ab" else draw.choice(alphabet)
    return " ".join([*tokens[:place], replacement, *tokens[place + 1 :]])


def broken(draw: random.Random, text: str) -> str:
    """One token dropped, doubled, replaced by any other, or swapped with its neighbour; the text may still be read."""
    tokens = text.split()
    place = draw.randrange(len(tokens))
    any_token = draw.choice([*"+*^PN0123456789", "a", "b0", "&", "⁇"])
    edited = draw.choice(
        [
            [*tokens[:place], *tokens[place + 1 :]],
            [*tokens[:place], tokens[place], *tokens[place:]],
            [*tokens[:place], any_token, *tokens[place + 1 :]],
            [*tokens[:place], *tokens[place : place + 2][::-1], *tokens[place + 2 :]],
        ]
    )
    return " ".join(edited)


@pytest.mark.parametrize("pairs", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("shape", [one_variable, towers, several_variables, singlets])
def test_agrees_with_sympy(shape: Callable[[random.Random], Problem], pairs: int) -> None:
    draw = random.Random(shape.__name__)
    seen: Counter[str] = Counter()
    for _ in range(pairs // 4):
        expanded, parts = shape(draw)
        answer = drawn_answer(draw, expanded, parts)
        rational = draw.random() < 0.5
        try:
            expected = judge(expanded, answer, rational)
        except Unknown:
            seen["unknown"] += 1
            continue
        outcome = check(f"{expanded} ⁇", answer, "QQ" if rational else "ZZ")
        assert outcome == expected, (expanded, answer, rational)
        seen[outcome] += 1
    assert seen["unknown"] < 0.02 * seen.total()
    assert all(seen[outcome] > 0.02 * seen.total() for outcome in ("correct", "wrong", "trivial", "unparseable")), seen
