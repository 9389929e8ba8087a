"""Reading and writing the prefix notation."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.polynomial_oracle import evaluate

from bgrpo.tasks.polynomial import notation
from bgrpo.tasks.polynomial.notation import (
    EXPONENT_BITS,
    MAX_DEGREE,
    Budget,
    NotationError,
    Polynomial,
    format_polynomial,
    pack,
    parse,
    split_prompt,
    unpack,
)

NAMES = ("a0", "a1", "a2")
polynomials = st.dictionaries(
    st.tuples(*[st.integers(0, 30)] * 3).map(pack), st.integers(-(10**30), 10**30).filter(bool), max_size=12
).map(lambda terms: Polynomial(NAMES, terms))

leaves = st.one_of(
    st.sampled_from(["a", "a1", "b0", "a12"]),
    st.integers(-99, 99).map(lambda n: f"{'PN'[n < 0]} {' '.join(str(abs(n)))}"),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, st.sampled_from("+*"), inner, inner),
        st.builds("^ {} P {}".format, inner, st.integers(0, 3)),
    ),
    max_leaves=8,
)


coefficients = st.one_of(
    st.integers(-99, 99).map(lambda n: f"{'PN'[n < 0]} {' '.join(str(abs(n)))}"),
    st.sampled_from(["P 0", "N 0", "P  1 2", "P12", "P", f"P {'9 ' * 299}9", f"N {'9 ' * 320}9", f"P {'9 ' * 5000}9"]),
)
sums = st.tuples(
    st.lists(
        st.one_of(
            coefficients,
            st.builds("* {} {}".format, coefficients, st.sampled_from(["a", "^ a P 2", "^ a P 0", "^ a P 1 2"])),
            st.builds("* {} {}".format, coefficients, st.sampled_from(["a1", "b", "^ a P 3 0 0", "^ a N 1", "^ a P"])),
            st.just("* P 3 * P 2 a"),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["{}", " {}", "{} ", "+ {}", "{} a", "{} 1"]),
).map(lambda drawn: drawn[1].format("".join(f"+ {term} " for term in drawn[0][:-1]) + drawn[0][-1]))


def read(text: str, known: tuple[str, ...], work: int) -> object:
    """The polynomial and what was charged for it, or why it is refused."""
    budget = Budget(work, 4)
    try:
        return parse(text, known, budget), budget
    except NotationError as error:
        return str(error)


@given(sums, st.sampled_from([(), ("a",), ("b",), ("a", "a1")]), st.integers(0, 12))
@settings(max_examples=400, deadline=None)
def test_sums_in_one_variable_are_read_as_any_expression(text: str, known: tuple[str, ...], work: int) -> None:
    found = read(text, known, work)
    with patch.object(notation, "_sum_of_terms", lambda *_: None):
        assert read(text, known, work) == found


def test_most_sums_take_the_short_way() -> None:
    with patch.object(notation._Evaluator, "evaluate", side_effect=AssertionError):
        assert terms_of("+ P 3 + * N 1 2 a * P 4 ^ a P 2") == {(0,): 3, (1,): -12, (2,): 4}


def terms_of(text: str) -> dict[tuple[int, ...], int]:
    polynomial = parse(text)
    return {unpack(key, len(polynomial.names)): value for key, value in polynomial.terms.items()}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("P 0", {}),
        ("N 1 2", {(): -12}),
        ("a", {(1,): 1}),
        ("+ P 5 * N 1 2 ^ a P 1 0", {(0,): 5, (10,): -12}),
        ("* P 2 * ^ a0 P 3 a1", {(3, 1): 2}),
        ("+ a1 * N 1 a1", {}),
        ("+ P 0 a", {(1,): 1}),
        ("+ a P 0", {(1,): 1}),
        ("+ N 0 P 0", {}),
        ("* P 0 + a P 1", {}),
        ("* + a P 1 P 0", {}),
        ("+ P 1 * N 1 P 1", {}),
        ("^ a N 0", {(0,): 1}),
        ("^ * P 0 a P 3", {}),
        ("^ a P 0", {(0,): 1}),
        ("* ^ a P 0 1 P 7", {(1,): 7}),
        ("^ + a b P 2", {(2, 0): 1, (1, 1): 2, (0, 2): 1}),
        ("* + a P 1 + a N 1", {(2,): 1, (0,): -1}),
        ("^ P 0 P 0", {(): 1}),
        ("^ a P 0 0 2", {(2,): 1}),
        ("^ * P 2 a P 3", {(3,): 8}),
        ("^^aP2P3", {(6,): 1}),
        ("+*P2^a2P3+a10a2", {(3, 0): 2, (1, 0): 1, (0, 1): 1}),  # glued; a2 comes before a10
        ("\t+ a\nP\u00a03 ", {(1,): 1, (0,): 3}),
    ],
)
def test_reads(text: str, terms: dict[tuple[int, ...], int]) -> None:
    assert terms_of(text) == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to read"),
        ("+ a", "lacks an operand"),
        ("+", "lacks an operand"),
        ("^ a", "lacks an operand"),
        ("a a", "left over"),
        ("+ a P 1 P 2", "left over"),
        ("P", "sign P without digits"),
        ("+ N a", "sign N without digits"),
        ("a 2", "unknown token '2'"),
        ("a02", "unknown token '2'"),
        ("x", "unknown token 'x'"),
        ("a & a", "unknown token '&'"),
        ("a ⁇", "unknown token '⁇'"),
        ("a □", "unknown token '□'"),
        ("P ²", "unknown token '²'"),
        ("P ٣", "unknown token '٣'"),
        ("^ a N 1", "exponent"),
        ("^ a a", "exponent"),
        ("^ a + P 1 P 1", "exponent"),
        (f"^ a P {' '.join(str(MAX_DEGREE + 1))}", "degree 257"),
        ("^ P 1 P 9 9 9 9 9 9", "degree 999999"),
        ("^ a P 9 9 9 9 9 9", "degree 999999"),
        ("^ a P" + " 9" * 400, "400 digits"),
        ("^ a1234567890 P 2", "unknown token"),
        ("^ ^ ^ a P 9 P 9 P 9", "degree 729"),
        ("* ^ P 9 9 9 P 1 0 0 ^ P 9 9 9 P 1 0 0", "1024 bits"),
        ("P" + " 9" * 310, "310 digits"),
        ("^ + a + b + a0 + a1 a2 P 9 9", "coefficient operations"),
        (" + ".join(["", *[f"a{i}" for i in range(33)], "a"]), "34 variables"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(NotationError, match=message.replace("+", r"\+")):
        parse(text)


def test_depth_is_not_limited() -> None:
    assert terms_of("+ " * 15_000 + "a " * 15_001) == {(1,): 15_001}


@given(polynomials, st.booleans())
def test_round_trip(polynomial: Polynomial, unit_coefficients: bool) -> None:
    text = format_polynomial(polynomial, unit_coefficients)
    assert parse(text, NAMES) == polynomial
    assert parse(text.replace(" ", ""), NAMES) == polynomial


@given(expressions, st.integers(-5, 5))
def test_expressions_agree_with_an_independent_reader(text: str, point: int) -> None:
    values = {"a": point, "a1": point + 3, "b0": 2 - point, "a12": 7 * point - 1}
    polynomial = parse(text)
    assert all(polynomial.terms.values())
    total = 0
    for key, coefficient in polynomial.terms.items():
        for name, exponent in zip(polynomial.names, unpack(key, len(polynomial.names)), strict=True):
            coefficient *= values[name] ** exponent
        total += coefficient
    assert total == evaluate(text, values.__getitem__)


@given(polynomials)
def test_degree(polynomial: Polynomial) -> None:
    assert polynomial.degree == max((sum(unpack(key, 3)) for key in polynomial.terms), default=0)


def test_packing_leaves_room_for_every_degree() -> None:
    assert MAX_DEGREE < 2**EXPONENT_BITS - 1
    assert unpack(pack((256, 0, 255)), 3) == (256, 0, 255)


def test_known_variables_keep_their_places() -> None:
    polynomial = parse("+ a1 + b a0", ("a1", "a7"))
    assert polynomial.names == ("a1", "a7", "a0", "b")


@pytest.mark.parametrize("text", ["a ⁇", "a ?", " a⁇ \n", "a"])
def test_prompt_separator_is_taken_off_once(text: str) -> None:
    assert split_prompt(text).strip() == "a"
    assert split_prompt("a ⁇ ⁇").strip() == "a ⁇"


@pytest.mark.parametrize(
    ("name", "unit_coefficients"),
    [("test_4_4", True), ("validation_single", True), ("validation_multi", False), ("example_single_a1_mixed", False)],
)
def test_writes_as_published(shared_data: Path, name: str, unit_coefficients: bool) -> None:
    for line in (shared_data / "polynomial" / f"{name}.txt").read_text("utf-8").splitlines():
        for text in line.replace("⁇", "&").replace("?", "&").split("&"):
            assert format_polynomial(parse(text), unit_coefficients) == text.strip()
