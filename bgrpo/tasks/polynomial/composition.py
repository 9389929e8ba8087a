"""Exact tests of compositions: is f = g(h) for some g of one variable, and is f = outer(inner0, inner1, …)?

Each test of what may become large first works modulo a prime, where every step is cheap and a mismatch proves that f
differs. Only what agrees there, which is right but for a chance near 1e-16, is computed with integers. So an answer
that is wrong cannot cause large numbers or many terms.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property, lru_cache
from math import comb, gcd
from typing import Any

from flint import fmpz_mpoly, fmpz_mpoly_ctx, fmpz_poly, nmod_poly
from flint.utils.flint_exceptions import DomainError

from bgrpo.tasks.polynomial.notation import (
    EXPONENT_BITS,
    MAX_BITS,
    MAX_DEGREE,
    NotationError,
    Polynomial,
    Terms,
    unpack,
)

PRIME = 2**61 - 1
SMALL_DEGREE, SMALL_BITS = 32, 64
"""Polynomials in one variable up to here are divided at once: no quotient of theirs is large."""

MAX_EXPANSION = 20_000  # terms of all products in a composition, before like ones are collected


class Target:
    """The polynomial f of a prompt, with what is computed from it once for all completions.

    Attributes:
        names: variables of its text (some may cancel out).
        terms: f itself, see :class:`Polynomial`.
        degree: total degree of f.
    """

    def __init__(self, f: Polynomial) -> None:
        self.names, self.terms, self.degree = f.names, f.terms, f.degree
        self._exact: fmpz_poly | fmpz_mpoly | None = None

    @property
    def exact(self) -> fmpz_poly | fmpz_mpoly:
        """f, dense in one variable or sparse in several; no cached_property, whose lock every line would pay."""
        if self._exact is None:
            self._exact = _exact(self.terms, len(self.names))
        return self._exact

    @cached_property
    def on_line(self) -> nmod_poly:
        """f modulo the prime along the fixed line; in one variable, f itself."""
        return _on_line(self.exact, self.terms, self.names)

    @cached_property
    def value(self) -> int:
        """f modulo the prime at the fixed point."""
        return _evaluate(self.terms, [_point(name) for name in self.names])


def has_left_factor(f: Target, h: Polynomial, integral: bool) -> bool:
    """Whether f = g(h) for a polynomial g of one variable with integer (``integral``) or rational coefficients.

    Neither f nor h may be constant; the first variables of h are those of f. Write h = c + k * h1 where h1 is
    primitive without constant term. If g exists over the rationals then f = g1(h1), where the coefficients of g1 are
    f(0), then the constant term of (f - f(0)) / h1, and so on, all integers by Gauss's lemma. And g has integer
    coefficients exactly when k^i divides the i-th of them.
    """
    if f.degree % h.degree or max(h.terms) >> EXPONENT_BITS * len(f.names):
        return False
    if len(f.names) == 1 and f.degree <= SMALL_DEGREE:
        of_f, of_h = f.exact, _dense(h.terms)
        if isinstance(of_f, fmpz_poly) and max(of_f.height_bits(), of_h.height_bits()) <= SMALL_BITS:
            of_h[0] = 0
            content = int(of_h.content())
            digits = _digits(of_f, of_h if content == 1 else of_h / content)
            return digits is not None and (
                content == 1 or not integral or not any(digit % content**i for i, digit in enumerate(digits))
            )
    h1, content = _primitive({key: coefficient for key, coefficient in h.terms.items() if key})
    exact = _exact(h1, len(f.names))
    digits = _digits(f.on_line, _on_line(exact, h1, f.names))
    if digits is None:
        return False
    if len(f.names) > 1 and digits:
        at_point = _evaluate(h1, [_point(name) for name in f.names])
        if nmod_poly(digits, PRIME)(at_point) != f.value:
            return False
    return _divides_throughout(f, exact, content if integral else 1)


def composes(f: Target, outer: Polynomial, inners: Sequence[Polynomial], names: Sequence[str]) -> bool:
    """Whether f = outer(inner0, inner1, …).

    Args:
        f: the target.
        outer: polynomial whose i-th variable stands for ``inners[i]``.
        inners: one per variable of the outer.
        names: variables of the inners; those of f come first, further ones must cancel out.

    Raises:
        NotationError: it may be, but finding out passes a limit.
    """
    point = [_point(name) for name in names]
    values = [_evaluate(inner.terms, point) for inner in inners]
    if _evaluate(outer.terms, values) != f.value:
        return False
    if not inners:
        return outer.terms == f.terms
    _check_expansion(outer, inners, len(names))
    arguments = [_sparse(inner.terms, len(names)) for inner in inners]
    composed = _sparse(outer.terms, len(inners)).compose(*arguments, ctx=_context(len(names)))
    return bool(composed == _sparse(f.terms, len(names)))


def is_affine_image(f: Terms, h: Terms) -> bool:
    """Whether f = c * h + d for rational c and d, c not zero: then h is f in disguise."""
    f = {key: coefficient for key, coefficient in f.items() if key}
    h = {key: coefficient for key, coefficient in h.items() if key}
    if not f or f.keys() != h.keys():
        return False
    pivot = next(iter(f))
    return all(f[key] * h[pivot] == h[key] * f[pivot] for key in f)


def _divides_throughout(f: Target, h1: Any, step: int) -> bool:
    """Whether the digits of f in base h1 are constants, the i-th one a multiple of step^i."""
    origin: Any = 0 if isinstance(h1, fmpz_poly) else (0,) * len(f.names)
    rest: Any = f.exact
    power = 1
    while True:
        digit = rest[origin]
        if digit % power:
            return False
        rest = rest - digit
        if not rest:
            return True
        try:
            rest = rest / h1
        except DomainError:
            return False
        power *= step


def _digits(f: Any, h: Any) -> list[int] | None:
    """Coefficients of the g with f = g(h), or None if there is none; [] if h is constant, when nothing is known.

    Both are polynomials modulo the prime, or both of integers and h primitive. Then every quotient has integers if g
    exists (Gauss's lemma); and a rest that is constant shows f to be the quotient times h plus it, rounded or not.
    """
    degree = h.degree()
    if degree < 1:
        return []
    digits = []
    while f.degree() >= degree:
        f, digit = divmod(f, h)
        if digit.degree() > 0:
            return None
        digits.append(int(digit[0]))
    if f.degree() > 0:
        return None
    return [*digits, int(f[0])] if f else digits


def _check_expansion(outer: Polynomial, inners: Sequence[Polynomial], variables: int) -> None:
    """Refuse a composition whose powers and products could be large."""
    lengths = [len(inner.terms) for inner in inners]
    degrees = [inner.degree for inner in inners]
    bits = [_bits(inner.terms) + len(inner.terms).bit_length() for inner in inners]
    expansion = 0
    for key, coefficient in outer.terms.items():
        exponents = unpack(key, len(inners))
        degree = sum(e * d for e, d in zip(exponents, degrees, strict=True))
        size = coefficient.bit_length() + sum(e * b for e, b in zip(exponents, bits, strict=True))
        products = 1
        for exponent, length in zip(exponents, lengths, strict=True):
            products = min(products * comb(max(length, 1) + exponent - 1, exponent), MAX_EXPANSION + 1)
        expansion += min(products, comb(degree + variables, variables))
        if degree > MAX_DEGREE or size > 2 * MAX_BITS or expansion > MAX_EXPANSION:
            raise NotationError(
                f"the composition may reach degree {degree}, {size} bits, {expansion} terms; at most {MAX_DEGREE}, "
                f"{2 * MAX_BITS}, {MAX_EXPANSION} are computed"
            )


def _bits(terms: Terms) -> int:
    return max((coefficient.bit_length() for coefficient in terms.values()), default=0)


def _primitive(terms: Terms) -> tuple[Terms, int]:
    content = gcd(*terms.values())
    return {key: coefficient // content for key, coefficient in terms.items()}, content


@lru_cache(maxsize=1024)
def _point(name: str) -> int:
    """Coordinate of a variable at the fixed point: any number will do that has nothing to do with a problem."""
    return random.Random(f"point {name}").randrange(1, PRIME)


@lru_cache(maxsize=1024)
def _line(name: str) -> nmod_poly:
    """Coordinate of a variable along the fixed line, a polynomial of degree 1 in the parameter."""
    draw = random.Random(f"line {name}")
    return nmod_poly([draw.randrange(1, PRIME), draw.randrange(1, PRIME)], PRIME)


def _evaluate(terms: Terms, values: Sequence[int]) -> int:
    """Value modulo the prime."""
    total = 0
    for key, product in terms.items():
        for exponent, value in zip(unpack(key, len(values)), values, strict=True):
            if exponent:
                product = product * (value if exponent == 1 else pow(value, exponent, PRIME)) % PRIME
        total += product
    return total % PRIME


def _on_line(exact: fmpz_poly | fmpz_mpoly, terms: Terms, names: Sequence[str]) -> nmod_poly:
    if isinstance(exact, fmpz_poly):
        return nmod_poly(exact, PRIME)
    total = nmod_poly([], PRIME)
    lines = [_line(name) for name in names]
    for key, coefficient in terms.items():
        product = nmod_poly([coefficient % PRIME], PRIME)
        for exponent, line in zip(unpack(key, len(lines)), lines, strict=True):
            if exponent:
                product *= line if exponent == 1 else line**exponent
        total += product
    return total


def _exact(terms: Terms, variables: int) -> fmpz_poly | fmpz_mpoly:
    return _dense(terms) if variables == 1 else _sparse(terms, variables)


def _dense(terms: Terms) -> fmpz_poly:
    coefficient = terms.get
    return fmpz_poly([coefficient(exponent, 0) for exponent in range(max(terms, default=-1) + 1)])


def _sparse(terms: Terms, variables: int) -> fmpz_mpoly:
    return _context(variables).from_dict({unpack(key, variables): c for key, c in terms.items()})


def _context(variables: int) -> fmpz_mpoly_ctx:
    return fmpz_mpoly_ctx.get(("x", variables), "lex")
