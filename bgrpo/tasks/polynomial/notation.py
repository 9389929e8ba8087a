"""Prefix notation: text to polynomial and back.

``+ * ^`` are binary, an integer is ``P`` or ``N`` (its sign) and one token per decimal digit, variables are ``a``,
``b``, ``a0``, ``b12``. Blanks between tokens are optional, so ``*P2^a2P3`` reads as ``* P 2 ^ a2 P 3``. An exponent is
an integer literal, 0 or more. Expressions may nest in any way and to any depth.

A polynomial is a dictionary from packed exponents to non-zero integers: the exponent of variable i stands in bits
``EXPONENT_BITS * i`` and up of the key. So the product of two monomials is the sum of their keys, and ascending keys
are the order of the published data (ascending powers of the last variable, then of the one before it, …).

Limits hold for every value while it is computed, so no text, however hostile, takes long to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

SEPARATOR = "⁇"
SEPARATORS = (SEPARATOR, "?")  # files have both
PART = "&"

MAX_CHARACTERS = 1 << 16  # of one expression
MAX_DEGREE = 256  # total degree of every value
MAX_BITS = 1024  # of a coefficient
MAX_TERMS = 1024  # when expanded; over all parts of one answer
MAX_WORK = 20_000  # coefficient operations in expanding, over all parts; a sum of n monomials takes some 2n
MAX_VARIABLES = 32  # distinct names in one prompt and completion
EXPONENT_BITS = 10
_EXPONENT_MASK = (1 << EXPONENT_BITS) - 1
_MAX_DIGITS = len(str(1 << MAX_BITS))
_QUICK_LENGTH = 300  # of a term whose coefficient is certainly within MAX_BITS

_NAME = "[ab](?:0|[1-9][0-9]{0,8})?"
_DIGITS = r"(?:\s*[0-9])+"
# A power of a variable is most of what is read, so it is one lexeme, "^ a P 4"; any other power begins with "^".
_LEXEME = re.compile(rf"\^\s*{_NAME}\s*P{_DIGITS}|[PN]{_DIGITS}|{_NAME}|[+*^]|\S")
# What generated files of one variable hold: "+ P 3 + * N 2 a * P 1 ^ a P 2"; nothing is given back in matching.
_TERM = r"(?:[PN][ 0-9]*[0-9]|\* [PN][ 0-9]*[0-9] (?:\^ a P[ 0-9]*[0-9]|a))"
_SUM = re.compile(rf"((?:\+ {_TERM} )*+)({_TERM})")
_SHORT_FORM = str.maketrans("N", "-", " P*^")

Terms = dict[int, int]
_Value = int | tuple[int, Terms]  # an integer literal, or (bound of the total degree, terms)


class NotationError(ValueError):
    """The text is not an expression of the notation, or it passes a limit."""


@dataclass(slots=True)
class Polynomial:
    """An expanded polynomial with integer coefficients; not to be changed.

    Attributes:
        names: variables; the position is the one in packed exponents. Not all of them need occur.
        terms: packed exponents to coefficient, no zeros; empty is the zero polynomial.
    """

    names: tuple[str, ...]
    terms: Terms
    _degree: int = field(default=-1, init=False, repr=False, compare=False)

    @property
    def degree(self) -> int:
        """Total degree; 0 for constants, zero included."""
        if self._degree < 0:
            # A number is congruent to the sum of its digits modulo its base less one, and MAX_DEGREE is below that.
            keys = self.terms if len(self.names) <= 1 else [key % _EXPONENT_MASK for key in self.terms]
            self._degree = max(keys) if keys else 0
        return self._degree

    def without_idle_variables(self) -> Polynomial:
        """The same in the variables that occur: ``+ b0 * P 0 b1`` and ``^ b1 P 0`` name b1, but it does not occur."""
        places = occurring(self.terms, len(self.names))
        if len(places) == len(self.names):
            return self
        exponents = {key: unpack(key, len(self.names)) for key in self.terms}
        terms = {pack(exponents[key][i] for i in places): coefficient for key, coefficient in self.terms.items()}
        return Polynomial(tuple(self.names[i] for i in places), terms)


@dataclass(slots=True)
class Budget:
    """What is left of the limits that the parts of one answer share."""

    work: int = MAX_WORK
    terms: int = MAX_TERMS

    def charge(self, operations: int) -> None:
        """Take coefficient operations off, before they are done."""
        self.work -= operations
        if self.work < 0:
            raise NotationError(f"expanding it takes more than {MAX_WORK} coefficient operations")

    def keep(self, terms: int) -> None:
        """Take terms of a finished polynomial off."""
        self.terms -= terms
        if self.terms < 0:
            raise NotationError(f"more than {MAX_TERMS} terms when expanded")


def unpack(key: int, variables: int) -> tuple[int, ...]:
    """Exponents of the first ``variables`` variables of a packed key."""
    return tuple([key >> shift & _EXPONENT_MASK for shift in range(0, EXPONENT_BITS * variables, EXPONENT_BITS)])


def pack(exponents: Iterable[int]) -> int:
    """Packed key of exponents; the inverse of :func:`unpack`."""
    return sum(exponent << EXPONENT_BITS * i for i, exponent in enumerate(exponents))


def occurring(terms: Terms, variables: int) -> list[int]:
    """Places of the variables that occur."""
    present = 0
    for key in terms:
        present |= key
    return [i for i, exponent in enumerate(unpack(present, variables)) if exponent]


def parse(text: str, known: tuple[str, ...] = (), budget: Budget | None = None) -> Polynomial:
    """Read one expression.

    Args:
        text: the expression, without separator.
        known: variables that take the first positions; further ones follow, ``a`` before ``b``, by index.
        budget: shared by the parts of one answer; by default the text has one of its own.

    Raises:
        NotationError: empty text, unknown token, sign without digits, missing operand, something left over, an
            exponent that is not a literal of 0 or more, or a value past a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotationError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
    written_out = _sum_of_terms(text, known, budget)
    if written_out is not None:
        return written_out
    budget = budget or Budget()
    lexemes = _LEXEME.findall(text)
    names = _variables(lexemes, known)
    value = _Evaluator(names, budget).evaluate(lexemes)
    _, terms = _constant(value) if isinstance(value, int) else value
    budget.keep(len(terms))
    return Polynomial(names, terms)


def _sum_of_terms(text: str, known: tuple[str, ...], budget: Budget | None) -> Polynomial | None:
    """What :func:`parse` gives for a sum of terms in the variable a, at a third of the cost; None for other texts."""
    found = _SUM.fullmatch(text) if known in ((), ("a",)) else None
    if found is None:
        return None
    pieces = f"{found[1]}+{found[2]}".translate(_SHORT_FORM).split("+")  # "", "-3", "2a", "-1a2"
    if len(text) > _QUICK_LENGTH and max(map(len, pieces)) > _QUICK_LENGTH:
        return None
    terms: Terms = {}
    for piece in pieces[:0:-1]:
        number, variable, exponent = piece.partition("a")
        key = int(exponent) if exponent else len(variable)
        if key > MAX_DEGREE or key in terms:  # one that comes again is rare
            return None
        if value := int(number):
            terms[key] = value
    if budget is not None or len(text) > _QUICK_LENGTH:  # a shorter one alone is within every limit
        budget = budget or Budget()
        budget.charge(text.count("*") + max(len(terms) - 1, 0))
        budget.keep(len(terms))
    return Polynomial(("a",) if "a" in text else known, terms)


def format_polynomial(polynomial: Polynomial, unit_coefficients: bool) -> str:
    """Write in the style of the published data: ascending keys, ``+ term rest``, zero terms left out, zero is ``P 0``.

    Args:
        polynomial: what to write.
        unit_coefficients: write a coefficient 1 before a power (``* P 1 ^ a P 3``, as the one-variable files do) or
            leave it out (``^ a0 P 3``, as those in several variables do). A coefficient -1 is always written.
    """
    terms = [
        _format_term(polynomial.terms[key], key, polynomial.names, unit_coefficients)
        for key in sorted(polynomial.terms)
    ]
    return _chain("+", terms) if terms else "P 0"


def split_prompt(text: str) -> str:
    """The expression of a prompt: one separator at its end, if any, is taken off."""
    text = text.strip()
    return text[:-1] if text.endswith(SEPARATORS) else text


class _Evaluator:
    """Evaluates one expression from its last token to its first, with a stack instead of recursion."""

    def __init__(self, names: tuple[str, ...], budget: Budget) -> None:
        self._keys = {name: 1 << EXPONENT_BITS * i for i, name in enumerate(names)}
        self._charge = budget.charge

    def evaluate(self, lexemes: list[str]) -> _Value:
        """Value of the expression, within all limits."""
        stack: list[_Value] = []
        push, pop, keys = stack.append, stack.pop, self._keys
        try:
            for lexeme in reversed(lexemes):
                key = keys.get(lexeme)
                if key is not None:
                    push((1, {key: 1}))
                elif lexeme == "*":
                    push(self._multiply(pop(), pop()))
                elif lexeme == "+":
                    push(self._add(pop(), pop()))
                elif lexeme == "^":
                    push(self._power(pop(), pop()))
                elif lexeme[0] == "^":
                    name, exponent = _variable_power(lexeme)
                    push((exponent, {keys[name] * exponent: 1}))
                else:
                    push(_integer(lexeme))
        except IndexError:
            raise NotationError("an operator lacks an operand") from None
        if len(stack) != 1:
            raise NotationError("nothing to read" if not stack else "something is left over after the expression")
        return stack[0]

    def _add(self, left: _Value, right: _Value) -> _Value:
        """Sum; the operand with more terms is changed in place, which is safe: each value is used once."""
        degree, terms = _constant(left) if isinstance(left, int) else left
        degree_other, others = _constant(right) if isinstance(right, int) else right
        if len(terms) < len(others):
            terms, others = others, terms
        self._charge(len(others))
        for key, coefficient in others.items():
            total = terms.get(key, 0) + coefficient
            if total:
                terms[key] = total
            else:
                terms.pop(key, None)
        return (degree if degree > degree_other else degree_other), terms

    def _multiply(self, left: _Value, right: _Value) -> _Value:
        if isinstance(left, int) and not isinstance(right, int):  # most often
            degree, terms = right
            self._charge(len(terms))
            product = {key: left * coefficient for key, coefficient in terms.items()} if left else {}
        else:
            degree_left, terms = _constant(left) if isinstance(left, int) else left
            degree_right, others = _constant(right) if isinstance(right, int) else right
            degree = degree_left + degree_right
            if degree > MAX_DEGREE:
                raise _too_high(degree)
            self._charge(len(terms) * len(others))
            product = _expand(terms, others)
        for coefficient in product.values():
            if coefficient.bit_length() > MAX_BITS:
                raise NotationError(f"a coefficient has more than {MAX_BITS} bits")
        return degree, product

    def _power(self, base: _Value, exponent: _Value) -> _Value:
        if not isinstance(exponent, int) or exponent < 0:
            raise NotationError("an exponent is not an integer literal of 0 or more")
        degree, terms = _constant(base) if isinstance(base, int) else base
        if degree * exponent > MAX_DEGREE or exponent > MAX_DEGREE:
            raise _too_high(exponent * max(degree, 1))
        if exponent == 0:
            return 0, {0: 1}
        power: _Value = degree, terms
        for bit in bin(exponent)[3:]:
            power = self._multiply(power, power)
            if bit == "1":
                power = self._multiply(power, (degree, terms))
        return power


def _constant(value: int) -> tuple[int, Terms]:
    return 0, {0: value} if value else {}


def _expand(terms: Terms, others: Terms) -> Terms:
    if len(terms) == 1:
        ((key, coefficient),) = terms.items()
        return {key + k: coefficient * c for k, c in others.items()}
    product: Terms = {}
    get = product.get
    for key, coefficient in terms.items():
        for k, c in others.items():
            product[key + k] = get(key + k, 0) + coefficient * c
    return {key: coefficient for key, coefficient in product.items() if coefficient}


def _integer(lexeme: str) -> int:
    if lexeme[0] not in "PN":
        raise NotationError(f"unknown token {lexeme!r}")
    digits = lexeme[1:].replace(" ", "")
    if not digits.isdigit():  # other blanks
        digits = "".join(digits.split())
    if not digits:
        raise NotationError(f"sign {lexeme} without digits")
    if len(digits) > _MAX_DIGITS:
        raise NotationError(f"an integer of {len(digits)} digits, at most {_MAX_DIGITS} are read")
    return int(digits) if lexeme[0] == "P" else -int(digits)


@lru_cache(maxsize=1 << 12)
def _variable_power(lexeme: str) -> tuple[str, int]:
    """Name and exponent of a power of a variable."""
    name, _, digits = lexeme[1:].partition("P")
    exponent = _integer(f"P{digits}")
    if exponent > MAX_DEGREE:
        raise _too_high(exponent)
    return name.strip(), exponent


def _too_high(degree: int) -> NotationError:
    return NotationError(f"degree {degree}, at most {MAX_DEGREE} is read")


def _variables(lexemes: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    further = set()
    for lexeme in set(lexemes):
        if lexeme[0] in "ab":
            further.add(lexeme)
        elif lexeme[0] == "^" and len(lexeme) > 1:
            further.add(_variable_power(lexeme)[0])
    further.difference_update(known)
    if len(known) + len(further) > MAX_VARIABLES:
        raise NotationError(f"{len(known) + len(further)} variables, at most {MAX_VARIABLES} are read")
    return known + tuple(sorted(further, key=lambda name: (name[0], int(name[1:] or -1))))


def _chain(operator: str, operands: list[str]) -> str:
    """``+ x + y z`` of x, y, z."""
    return "".join([f"{operator} {operand} " for operand in operands[:-1]]) + operands[-1]


def _format_term(coefficient: int, key: int, names: tuple[str, ...], unit_coefficients: bool) -> str:
    if key and coefficient == 1 and not unit_coefficients:
        return _format_monomial(key, names)
    digits = " ".join(str(coefficient))
    integer = f"N {digits[2:]}" if coefficient < 0 else f"P {digits}"
    return f"* {integer} {_format_monomial(key, names)}" if key else integer


@lru_cache(maxsize=1 << 14)
def _format_monomial(key: int, names: tuple[str, ...]) -> str:
    factors = [
        name if exponent == 1 else f"^ {name} P {' '.join(str(exponent))}"
        for name, exponent in zip(names, unpack(key, len(names)), strict=True)
        if exponent
    ]
    return _chain("*", factors)
