"""Slow, independent reading and checking of polynomial answers: a recursive reader and SymPy's sparse polynomials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from sympy import QQ
from sympy.polys.rings import PolyElement, ring

MAX_DEGREE = 256  # published limit of the notation
TOO_LARGE = 60  # terms of a factor past which this oracle does not expand


class Unreadable(Exception):
    """Not an expression of the notation."""


class Unknown(Exception):
    """Too large for this oracle."""


def evaluate(text: str, variable: Callable[[str], Any], number: Callable[[int], Any] = int) -> Any:
    """Value of a text of blank-separated tokens in any ring: ``variable`` gives a variable's value."""
    tokens = text.split()

    def integer(place: int) -> tuple[int, int]:
        end = place + 1
        while end < len(tokens) and tokens[end] in [*"0123456789"]:
            end += 1
        if tokens[place] not in ("P", "N") or end == place + 1:
            raise Unreadable
        return (1 if tokens[place] == "P" else -1) * int("".join(tokens[place + 1 : end])), end

    def read(place: int) -> tuple[Any, int]:
        if place >= len(tokens):
            raise Unreadable
        token = tokens[place]
        if token in ("P", "N"):
            value, place = integer(place)
            return number(value), place
        if token == "^":
            base, place = read(place + 1)
            if place >= len(tokens):
                raise Unreadable
            exponent, place = integer(place)
            if exponent < 0 or exponent > MAX_DEGREE:
                raise Unreadable
            return _power(base, exponent), place
        if token in ("+", "*"):
            left, place = read(place + 1)
            right, place = read(place)
            return (left + right if token == "+" else _product(left, right)), place
        if token[0] in "ab" and (len(token) == 1 or token[1:].isdecimal()):
            return variable(token), place + 1
        raise Unreadable

    value, end = read(0)
    if end != len(tokens):
        raise Unreadable
    return value


def judge(expanded: str, answer: str, rational: bool) -> str:
    """Outcome name of an answer by the published rules, on SymPy.

    Raises:
        Unknown: the texts are too large for this oracle.
    """
    parts = answer.split("&")
    names = sorted({token for token in f"{expanded} {answer}".split() if token[0] in "ab"})
    _, *generators = ring(names or ["a"], QQ)
    by_name = dict(zip(names, generators, strict=False))
    one = generators[0] ** 0

    def read(text: str) -> PolyElement:
        return evaluate(text, by_name.__getitem__, lambda value: value * one)

    try:
        f, polynomials = read(expanded), [read(part) for part in parts]
    except Unreadable:
        return "unparseable"
    if len(parts) == 1:
        return _judge_inner(f, polynomials[0], rational)
    return _judge_parts(f, polynomials[0], polynomials[1:], by_name)


def _judge_inner(f: PolyElement, h: PolyElement, rational: bool) -> str:
    degree_f, degree_h = degree(f), degree(h)
    if degree_f == 0:
        return "trivial"
    if degree_h == 0:
        return "wrong"
    while degree(f) > 0:  # from the top: the leading monomial of f must be a power of that of h
        (lead_f, c_f), (lead_h, c_h) = f.LT, h.LT
        power = next(e_f // e_h for e_f, e_h in zip(lead_f, lead_h, strict=True) if e_h)
        if power < 1 or lead_f != tuple(power * e for e in lead_h):
            return "wrong"
        coefficient = c_f / c_h**power
        if not rational and coefficient.denominator != 1:
            return "wrong"
        f = f - coefficient * _power(h, power)
    return "correct" if 2 <= degree_h < degree_f else "trivial"


def _judge_parts(
    f: PolyElement, outer: PolyElement, inners: Sequence[PolyElement], by_name: Mapping[str, PolyElement]
) -> str:
    place = {f"b{i}": i for i in range(len(inners))} | ({"b": 0} if len(inners) == 1 else {})
    names = [str(symbol) for symbol in f.ring.symbols]
    composed = f.ring.zero
    used: set[int] = set()
    for exponents, coefficient in outer.terms():
        term = coefficient * f.ring.one
        for name, exponent in zip(names, exponents, strict=True):
            if exponent and name not in place:
                return "wrong"
            if exponent:
                used.add(place[name])
                term = _product(term, _power(inners[place[name]], exponent))
        composed += term
    if composed != f:
        return "wrong"
    copies = any(_is_affine_image(f, inners[i]) for i in used)
    deep = any(degree(inners[i]) >= 2 for i in used)
    return "correct" if degree(outer) >= 2 and deep and not copies else "trivial"


def _is_affine_image(f: PolyElement, h: PolyElement) -> bool:
    if degree(f) == 0 or degree(h) == 0:
        return False
    rest = f * h.LC - h * f.LC
    return degree(rest) == 0


def degree(polynomial: PolyElement) -> int:
    """Total degree, 0 for constants."""
    return max((sum(exponents) for exponents in polynomial), default=0)


def _power(base: Any, exponent: int) -> Any:
    if isinstance(base, PolyElement):
        if exponent == 0:  # 0^0 = 1 as for integers; SymPy refuses it
            return base.ring.one
        if max(degree(base), 1) * exponent > MAX_DEGREE:
            raise Unreadable
        if len(base) > 1 and len(base) * exponent > TOO_LARGE:
            raise Unknown
    return base**exponent


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, PolyElement) and isinstance(right, PolyElement):
        if degree(left) + degree(right) > MAX_DEGREE:
            raise Unreadable
        if min(len(left), len(right)) > TOO_LARGE:
            raise Unknown
    return left * right


def interpolate(points: Sequence[tuple[int, int]]) -> PolyElement:
    """The polynomial over the rationals through points with distinct first coordinates (Lagrange)."""
    _, x = ring("x", QQ)
    total = x.ring.zero
    for i, (x_i, y_i) in enumerate(points):
        term = x.ring.one * y_i
        for j, (x_j, _) in enumerate(points):
            if i != j:
                term = term * (x - x_j) * QQ(1, x_i - x_j)
        total += term
    return total


def distinct_points(h: Callable[[int], int], f: Callable[[int], int], needed: int) -> list[tuple[int, int]]:
    """(h, f) at the first seeds where h takes ``needed`` different values."""
    points: dict[int, int] = {}
    for seed in count():
        points.setdefault(h(seed), f(seed))
        if len(points) == needed:
            return list(points.items())
    raise AssertionError
