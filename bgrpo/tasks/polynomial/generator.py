"""Random decomposable polynomials, composed exactly.

Candidate i of a seed is a pure function of (options, seed, i): its numbers come from a hash of (seed, i). The problems
are the first distinct candidates in order. So they are the same whatever the number of processes that draw.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, shake_128
from itertools import count as count_from

from flint import fmpz_mpoly_ctx, fmpz_poly

from bgrpo.errors import UserError
from bgrpo.tasks.polynomial.notation import (
    MAX_TERMS,
    PART,
    SEPARATOR,
    NotationError,
    Polynomial,
    Terms,
    format_polynomial,
    occurring,
    pack,
    parse,
    split_prompt,
    unpack,
)
from bgrpo.tasks.polynomial.options import GeneratorOptions, Leading

CHUNK = 2000  # candidates drawn together
MAX_IDLE_CHUNKS = 5  # chunks in a row with fewer than CHUNK / 200 new problems, after which the space counts as empty


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated problem.

    Attributes:
        expanded: the polynomial as text.
        answer: its answer as text.
        category: label, see :func:`category`.
    """

    expanded: str
    answer: str
    category: str

    @property
    def prompt(self) -> str:
        """The polynomial and the separator."""
        return f"{self.expanded} {SEPARATOR}"

    @property
    def line(self) -> str:
        """The line of a data file, without line end."""
        return f"{self.expanded} {SEPARATOR} {self.answer}"


@lru_cache(maxsize=1 << 10)
def category(variables: int, degree: int, inner_degree: int) -> str:
    """Label of a problem in breakdowns: ``outer_inner`` degrees in one variable, ``v<variables>_d<degree>`` in several.

    ``d<degree>`` where the inner degree is unknown (0) or does not divide the polynomial's.
    """
    if variables > 1:
        return f"v{variables}_d{degree}"
    if inner_degree == 0 or degree % inner_degree:
        return f"d{degree}"
    return f"{degree // inner_degree}_{inner_degree}"


def generate(options: GeneratorOptions, count: int, seed: int, exclude: Iterable[str] = ()) -> Iterator[Generated]:
    """``count`` distinct problems, none with a polynomial in ``exclude`` (prompts, with or without separator).

    Raises:
        UserError: while being consumed, when there are fewer than ``count``.
    """
    chunks = ((draw(options, seed, index) for index in _indices(chunk)) for chunk in count_from())
    return select(chunks, options, count, exclude)


def draw_chunk(options: GeneratorOptions, seed: int, chunk: int) -> list[Generated | None]:
    """Candidates ``chunk * CHUNK`` and up of a seed, :data:`CHUNK` of them; None where a draw is not usable."""
    return [draw(options, seed, index) for index in _indices(chunk)]


def select(
    chunks: Iterable[Iterable[Generated | None]], options: GeneratorOptions, count: int, exclude: Iterable[str]
) -> Iterator[Generated]:
    """The first ``count`` distinct candidates, see :func:`generate`."""
    seen = {_digest(_canonical(prompt, options)) for prompt in exclude}
    found = idle = drawn = 0
    for chunk in chunks:
        before = found
        for candidate in chunk:
            if found == count:
                return
            drawn += 1
            if candidate is None or (digest := _digest(candidate.expanded)) in seen:
                continue
            seen.add(digest)
            found += 1
            yield candidate
        idle = idle + 1 if found - before < CHUNK / 200 else 0
        if found < count and idle == MAX_IDLE_CHUNKS:
            raise UserError(
                f"only {found} of {count} distinct problems exist, or nearly: {drawn} candidates were drawn with "
                f"{options}; use more degrees or larger coefficients, or ask for fewer"
            )


def _indices(chunk: int) -> range:
    return range(chunk * CHUNK, (chunk + 1) * CHUNK)


def draw(options: GeneratorOptions, seed: int, index: int) -> Generated | None:
    """Candidate ``index`` of a seed; None when the draw is not usable.

    That is when the outer does not use every inner, or the expansion has fewer than two terms (a single one has
    decompositions of many shapes) or more than the verifier reads.
    """
    numbers = _Numbers(seed, index)
    outer_degree, inner_degree = options.degrees[numbers.below(len(options.degrees))]
    if options.kind in ("single", "single_with_outer"):
        return _draw_single(options, numbers, outer_degree, inner_degree)
    return _draw_several(options, numbers, outer_degree, inner_degree)


class _Numbers:
    """Random integers, a pure function of (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        self._words = _words(seed, index)

    def below(self, bound: int) -> int:
        """Uniform in 0 … bound - 1, with a bias below bound / 2^64."""
        return next(self._words) * bound >> 64

    def coefficient(self, bound: int) -> int:
        """Uniform in -bound … bound."""
        return self.below(2 * bound + 1) - bound

    def nonzero(self, bound: int) -> int:
        """Uniform in -bound … bound without 0."""
        number = self.below(2 * bound) - bound
        return number if number < 0 else number + 1

    def dense(self, degree: int, bound: int, leading: Leading) -> list[int]:
        """Coefficients of a polynomial of exactly this degree, lowest first."""
        lower = [self.coefficient(bound) for _ in range(degree)]
        return [*lower, 1 + self.below(bound) if leading == "positive" else self.nonzero(bound)]

    def homogeneous(self, variables: int, degree: int, fewest: int, options: GeneratorOptions) -> Terms:
        """From ``fewest`` to ``options.terms`` monomials of this degree, or fewer where two draws coincide.

        Each factor of a monomial is one of the variables, equally likely.
        """
        terms: Terms = {}
        for _ in range(fewest + self.below(options.terms - fewest + 1)):
            exponents = [0] * variables
            for _ in range(degree):
                exponents[self.below(variables)] += 1
            terms[pack(exponents)] = self.nonzero(options.coefficients)
        return terms


def _words(seed: int, index: int) -> Iterator[int]:
    for block in count_from():
        yield from struct.unpack("<40Q", shake_128(f"{seed} {index} {block}".encode()).digest(320))


def _draw_single(options: GeneratorOptions, numbers: _Numbers, outer_degree: int, inner_degree: int) -> Generated:
    inner = numbers.dense(inner_degree, options.coefficients, options.leading)
    outer = numbers.dense(outer_degree, options.coefficients, options.leading)
    expanded = fmpz_poly(outer)(fmpz_poly(inner)).coeffs()
    answer = _format_dense(inner, options.variable)
    if options.kind == "single_with_outer":
        answer = f"{_format_dense(outer, 'b')} {PART} {answer}"
    label = category(1, outer_degree * inner_degree, inner_degree)
    return Generated(_format_dense([int(c) for c in expanded], options.variable), answer, label)


def _draw_several(
    options: GeneratorOptions, numbers: _Numbers, outer_degree: int, inner_degree: int
) -> Generated | None:
    variables, inner_count = options.variables, options.inners if options.kind == "multi" else 1
    fewest = 1 if options.kind == "multi" else 2
    inners = [numbers.homogeneous(variables, inner_degree, fewest, options) for _ in range(inner_count)]
    if options.kind == "multi":
        outer = numbers.homogeneous(inner_count, outer_degree, 2, options)
    else:
        coefficients = numbers.dense(outer_degree, options.coefficients, options.leading)
        outer = {exponent: coefficient for exponent, coefficient in enumerate(coefficients) if coefficient}
    if len(occurring(outer, inner_count)) < inner_count:
        return None
    expanded = _compose(outer, inners, variables)
    if not 2 <= len(expanded) <= MAX_TERMS:
        return None
    names = _names("a", variables)
    parts = [format_polynomial(Polynomial(names, inner), unit_coefficients=False) for inner in inners]
    if options.kind == "multi":
        outer_names = _names("b", inner_count)
        parts.insert(0, format_polynomial(Polynomial(outer_names, outer), unit_coefficients=False))
    label = category(len(occurring(expanded, variables)), outer_degree * inner_degree, inner_degree)
    text = format_polynomial(Polynomial(names, expanded), unit_coefficients=False)
    return Generated(text, f" {PART} ".join(parts), label)


def _compose(outer: Terms, inners: Sequence[Terms], variables: int) -> Terms:
    inner_context = fmpz_mpoly_ctx.get(("x", variables), "lex")
    outer_context = fmpz_mpoly_ctx.get(("x", len(inners)), "lex")
    arguments = [
        inner_context.from_dict({unpack(key, variables): coefficient for key, coefficient in inner.items()})
        for inner in inners
    ]
    function = outer_context.from_dict({unpack(key, len(inners)): coefficient for key, coefficient in outer.items()})
    composed = function.compose(*arguments, ctx=inner_context)
    return {pack(exponents): int(coefficient) for exponents, coefficient in composed.to_dict().items()}


def _format_dense(coefficients: Sequence[int], name: str) -> str:
    terms = {exponent: coefficient for exponent, coefficient in enumerate(coefficients) if coefficient}
    return format_polynomial(Polynomial((name,), terms), unit_coefficients=name == "a")


@lru_cache
def _names(letter: str, variables: int) -> tuple[str, ...]:
    return tuple(f"{letter}{i}" for i in range(variables))


def _canonical(prompt: str, options: GeneratorOptions) -> str:
    """A prompt in the generator's own style; as it is if it cannot be read, since then it equals none."""
    try:
        polynomial = parse(split_prompt(prompt))
    except NotationError:
        return prompt
    return format_polynomial(polynomial, unit_coefficients=polynomial.names == ("a",))


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
