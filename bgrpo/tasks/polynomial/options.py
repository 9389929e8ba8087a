"""Options of the generator: typed, checked, built from a plain dictionary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from bgrpo.errors import UserError
from bgrpo.settings.spelling import nearest
from bgrpo.tasks.polynomial.notation import MAX_BITS, MAX_DEGREE, MAX_VARIABLES

Kind = Literal["single", "single_with_outer", "multi", "singlet"]
Leading = Literal["any", "positive"]
GENERATOR_HELP = {
    "degrees": "OUTER,INNER degrees, for example 2,3; may be repeated (default 2,2)",
    "coefficients": "coefficients lie within ± this (20)",
    "kind": "what an answer holds: single, single_with_outer, multi or singlet (single)",
    "leading": "sign of leading coefficients of the one-variable kinds: any or positive (any)",
    "variables": "variables of multi and singlet (3)",
    "inners": "inner polynomials of a multi answer (2)",
    "terms": "most terms of a polynomial in several variables (3)",
    "variable": "name of the inner variable of the one-variable kinds (a)",
}
"""Of the command line; see :class:`GeneratorOptions` for what each means."""


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """What problems to draw.

    Attributes:
        kind: ``single``: one variable, answer ``inner``; ``single_with_outer``: one variable, answer
            ``outer & inner``; ``multi``: several variables, answer ``outer & inner0 & inner1 …``, all homogeneous;
            ``singlet``: several variables, answer ``inner``, homogeneous (as the O(N) invariants are), under a dense
            outer of one variable.
        degrees: (outer, inner) degrees, all 2 or more; each problem takes one pair at random.
        coefficients: bound c of the drawn coefficients: integers in -c … c, leading ones (and all of ``multi``, and
            the inner's of ``singlet``) not zero.
        leading: sign of the leading coefficients of polynomials in one variable, so of all but the homogeneous ones:
            ``any``, or all ``positive``.
        variable: the inner variable of the one-variable kinds.
        variables: how many variables a0, a1, … the kinds in several variables have.
        inners: how many inner polynomials a ``multi`` answer has.
        terms: most terms of a homogeneous polynomial; their number is drawn, from 2 (inners of ``multi``: from 1).
    """

    kind: Kind = "single"
    degrees: tuple[tuple[int, int], ...] = ((2, 2),)
    coefficients: int = 20
    leading: Leading = "any"
    variable: str = "a"
    variables: int = 3
    inners: int = 2
    terms: int = 3

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GeneratorOptions:
        """Build from a configuration; ``degrees`` may be pairs or texts like ``"2,3"``.

        Raises:
            UserError: an unknown key (with the nearest known one), or a value that does not fit.
        """
        known = [field.name for field in fields(cls)]
        for key in options:
            if key not in known:
                meant = nearest(str(key), known)
                hint = f"; did you mean {meant!r}?" if meant else f"; known: {', '.join(known)}"
                raise UserError(f"generator option {key!r} is unknown{hint}")
        values = dict(options)
        if "degrees" in values:
            values["degrees"] = _degrees(values["degrees"])
        return cls(**values)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"generator option kind={self.kind!r}: expected one of {', '.join(get_args(Kind))}")
        if self.leading not in get_args(Leading):
            raise UserError(
                f"generator option leading={self.leading!r}: expected one of {', '.join(get_args(Leading))}"
            )
        object.__setattr__(self, "degrees", _degrees(self.degrees))
        for name, low, high in (
            ("coefficients", 1, 2**31),
            ("variables", 2, MAX_VARIABLES),
            ("inners", 1, MAX_VARIABLES - 1),
            ("terms", 2, 100),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise UserError(f"generator option {name}={value!r}: expected an integer from {low} to {high}")
        if not isinstance(self.variable, str) or not re.fullmatch("a(0|[1-9][0-9]{0,3})?", self.variable):
            raise UserError(f"generator option variable={self.variable!r}: expected a, a0, a1, …")
        self._check_size()
        fewest = min(outer for outer, _ in self.degrees)
        if self.kind == "multi" and self.inners > self.terms * fewest:
            raise UserError(
                f"generator options: an outer of degree {fewest} with terms={self.terms} uses at most "
                f"{self.terms * fewest} inners, inners={self.inners} is more"
            )

    def _check_size(self) -> None:
        """Refuse coefficients that the verifier would not read: a bound on those of the composition, in bits."""
        for outer, inner in self.degrees:
            several = self.kind in ("multi", "singlet")
            inner_sum = self.coefficients * (self.terms if several else inner + 1)
            outer_terms = self.terms if self.kind == "multi" else outer + 1
            bits = (self.coefficients * outer_terms * inner_sum**outer).bit_length()
            if bits > MAX_BITS:
                raise UserError(
                    f"generator options: degrees {outer},{inner} with coefficients={self.coefficients} reach {bits} "
                    f"bits in the expanded polynomial, at most {MAX_BITS} are read; use smaller ones"
                )


def _degrees(value: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(value, str | int):  # a single pair of a command line
        value = [str(value)]
    if not isinstance(value, Sequence) or not value:
        raise UserError(f"generator option degrees={value!r}: expected a list of outer,inner pairs, like [[2, 2]]")
    return tuple(_pair(item) for item in value)


def _pair(item: Any) -> tuple[int, int]:
    parts = item.split(",") if isinstance(item, str) else item
    try:
        outer, inner = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise UserError(f"generator option degrees: {item!r} is not a pair outer,inner, like 2,3") from None
    if outer < 2 or inner < 2:
        raise UserError(
            f"generator option degrees: {outer},{inner} makes trivial problems: both degrees must be 2 or more"
        )
    if outer * inner > MAX_DEGREE:
        raise UserError(
            f"generator option degrees: {outer} × {inner} = {outer * inner} is above the largest degree {MAX_DEGREE}"
        )
    return outer, inner
