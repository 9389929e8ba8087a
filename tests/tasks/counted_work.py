"""Counts what a check of two texts does, instead of timing it: the same on every machine, busy or idle."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, prod
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

from bgrpo.tasks.polynomial import composition, notation
from bgrpo.tasks.polynomial.notation import Polynomial, Terms, unpack

COUNTED = str(Path(notation.__file__).parent)


@dataclass(slots=True)
class Work:
    """What was done.

    Attributes:
        instructions: of Python, in the package of the polynomial task.
        characters: that were cut into lexemes.
        products: terms of all expansions by FLINT, before like ones are collected.
        terms: most terms of a polynomial that FLINT was given.
        bits: of the longest coefficient that FLINT was given.
    """

    instructions: int = 0
    characters: int = 0
    products: int = 0
    terms: int = 0
    bits: int = 0


def counted(call: Callable[[], Any]) -> tuple[Any, Work]:
    """The call's result and its work."""
    work, of_package = Work(), dict[CodeType, bool]()
    lexemes, dense, sparse, check_expansion = (
        notation._LEXEME, composition._dense, composition._sparse, composition._check_expansion,
    )  # fmt: skip

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            work.instructions += 1
        elif event == "call":
            code = frame.f_code
            if not of_package.setdefault(code, code.co_filename.startswith(COUNTED)):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    def findall(text: str) -> list[str]:
        work.characters += len(text)
        return lexemes.findall(text)

    def given(terms: Terms) -> Terms:
        work.terms = max(work.terms, len(terms))
        work.bits = max([work.bits, *(coefficient.bit_length() for coefficient in terms.values())])
        return terms

    def expand(outer: Polynomial, inners: Sequence[Polynomial], variables: int) -> None:
        check_expansion(outer, inners, variables)
        lengths = [max(len(inner.terms), 1) for inner in inners]
        for key in outer.terms:
            exponents = unpack(key, len(inners))
            full = sum(e * inner.degree for e, inner in zip(exponents, inners, strict=True))
            multisets = prod(comb(n + e - 1, e) for n, e in zip(lengths, exponents, strict=True))
            work.products += min(multisets, comb(full + variables, variables))

    before = sys.gettrace()
    with (
        mock.patch.object(notation, "_LEXEME", mock.Mock(spec=re.Pattern, findall=findall)),
        mock.patch.object(composition, "_dense", lambda terms: dense(given(terms))),
        mock.patch.object(composition, "_sparse", lambda terms, variables: sparse(given(terms), variables)),
        mock.patch.object(composition, "_check_expansion", expand),
    ):
        sys.settrace(trace)
        try:
            return call(), work
        finally:
            sys.settrace(before)
