"""The verifier: rules one by one, real data, and texts made to stall it."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks.counted_work import counted

from bgrpo.tasks.base import Outcome
from bgrpo.tasks.polynomial import composition, notation, verifier
from bgrpo.tasks.polynomial.composition import Target, has_left_factor
from bgrpo.tasks.polynomial.notation import parse
from bgrpo.tasks.polynomial.verifier import check, read_target

F = "+ P 3 + * P 2 ^ a P 2 ^ a P 4"  # (a^2 + 1)^2 + 2
SQUARES = "+ ^ a0 P 2 ^ a1 P 2"


@pytest.mark.parametrize(
    ("prompt", "completion", "integers", "rationals"),
    [
        # one variable, inner alone
        (F, "^ a P 2", "correct", "correct"),
        (F, "+ P 1 ^ a P 2", "correct", "correct"),
        (F, "+ N 7 * N 1 ^ a P 2", "correct", "correct"),
        (F, "* P 2 ^ a P 2", "wrong", "correct"),
        (F, "+ P 1 * P 2 ^ a P 2", "wrong", "correct"),
        ("* P 4 ^ a P 4", "* P 2 ^ a P 2", "correct", "correct"),
        ("+ * P 2 ^ a P 2 * P 4 ^ a P 4", "+ P 5 * P 2 ^ a P 2", "correct", "correct"),
        ("+ ^ a P 2 * P 4 ^ a P 4", "* P 2 ^ a P 2", "wrong", "correct"),
        (F, "+ a ^ a P 2", "wrong", "wrong"),
        (F, "^ a P 3", "wrong", "wrong"),
        (F, "^ a P 8", "wrong", "wrong"),
        (F, "P 3", "wrong", "wrong"),
        (F, "P 0", "wrong", "wrong"),
        (F, "+ a * N 1 a", "wrong", "wrong"),
        (F, "a", "trivial", "trivial"),
        (F, "+ P 7 a", "trivial", "trivial"),
        (F, "* P 2 a", "wrong", "trivial"),
        (F, F, "trivial", "trivial"),
        (F, f"+ P 1 {F}", "trivial", "trivial"),
        (F, f"* P 2 {F}", "wrong", "trivial"),
        (F, "^ a1 P 2", "wrong", "wrong"),
        (F, "+ ^ a P 2 + a1 * N 1 a1", "correct", "correct"),  # another variable that cancels out
        (F, "* a a", "correct", "correct"),  # any expression will do
        ("P 5", "^ a P 2", "trivial", "trivial"),
        ("P 0", "P 0", "trivial", "trivial"),
        # one variable with outer
        (F, "+ P 2 ^ b P 2 & + P 1 ^ a P 2", "correct", "correct"),
        (F, "+ P 2 ^ b0 P 2 & + P 1 ^ a P 2", "correct", "correct"),
        (F, "+ P 2 ^ b1 P 2 & + P 1 ^ a P 2", "wrong", "wrong"),
        (F, "+ P 1 ^ b P 2 & + P 1 ^ a P 2", "wrong", "wrong"),
        (F, f"b & {F}", "trivial", "trivial"),
        (F, f"+ P 1 b & + N 1 {F}", "trivial", "trivial"),
        (F, "+ P 3 + * P 2 ^ b P 2 ^ b P 4 & a", "trivial", "trivial"),
        (F, "+ P 1 b & ^ a P 2", "wrong", "wrong"),  # affine, but wrong before that
        (F, f"{F} & ^ a P 2", "wrong", "wrong"),  # the outer may not use a
        (F, f"{F} & a", "wrong", "wrong"),
        # several variables
        (f"^ {SQUARES} P 2", SQUARES, "correct", "correct"),
        (f"^ {SQUARES} P 2", f"* P 3 {SQUARES}", "wrong", "correct"),
        (f"^ {SQUARES} P 2", f"+ P 1 {SQUARES}", "correct", "correct"),
        (f"+ a2 ^ {SQUARES} P 2", SQUARES, "wrong", "wrong"),
        (f"^ {SQUARES} P 2", f"+ a2 {SQUARES}", "wrong", "wrong"),
        (f"^ {SQUARES} P 2", "+ ^ a0 P 2 * N 1 ^ a1 P 2", "wrong", "wrong"),
        (f"^ {SQUARES} P 2", f"^ {SQUARES} P 2", "trivial", "trivial"),
        ("^ + a0 a1 P 2", "+ a0 a1", "trivial", "trivial"),
        ("^ + a0 a1 P 4", "^ + a0 a1 P 2", "correct", "correct"),
        ("* ^ a0 P 2 a1", "* b0 b1 & ^ a0 P 2 & a1", "correct", "correct"),
        ("* ^ a0 P 2 a1", "* b0 b1 & ^ a0 P 2 & * N 1 a1", "wrong", "wrong"),
        ("* ^ a0 P 2 a1", "* b1 b0 & a1 & ^ a0 P 2", "correct", "correct"),
        ("* ^ a0 P 2 a1", "* ^ b0 P 2 b1 & a0 & a1", "trivial", "trivial"),
        ("* ^ a0 P 2 a1", "* b b & ^ a0 P 2 & a1", "wrong", "wrong"),
        ("^ a0 P 2", "^ b0 P 2 & a0 & ^ a1 P 2", "trivial", "trivial"),  # the only inner of degree 2 is not used
        ("^ a0 P 2", "+ ^ b0 P 2 * P 0 b1 & a0 & ^ a1 P 2", "trivial", "trivial"),  # nor when its term is zero
        (f"^ {SQUARES} P 2", f"b0 & ^ {SQUARES} P 2 & a0", "trivial", "trivial"),
        (f"^ {SQUARES} P 2", f"+ b0 ^ b1 P 2 & ^ {SQUARES} P 2 & P 0", "trivial", "trivial"),  # f itself, hidden
        (f"^ {SQUARES} P 2", f"+ b0 ^ b1 P 2 & + N 4 ^ {SQUARES} P 2 & P 2", "trivial", "trivial"),
        # neither
        (F, "", "unparseable", "unparseable"),
        (F, "a a", "unparseable", "unparseable"),
        (F, "^ a P 2 ⁇", "unparseable", "unparseable"),
        (F, "&", "unparseable", "unparseable"),
        (F, "^ b P 2 &", "unparseable", "unparseable"),
        (F, "^ b P 2 & ^ a P 2 &", "unparseable", "unparseable"),
        (F, "^ a P 2 □", "unparseable", "unparseable"),
        ("", "a", "unparseable", "unparseable"),
        (f"{F} ⁇ a", "a", "unparseable", "unparseable"),
        ("\ud800\0", "\ud800", "unparseable", "unparseable"),
    ],
)
def test_rules(prompt: str, completion: str, integers: str, rationals: str) -> None:
    for separator in ("", " ⁇", " ?"):
        assert check(prompt + separator, completion, "ZZ") == integers
        assert check(prompt + separator, completion, "QQ") == rationals


@pytest.mark.parametrize("name", ["test_2_2", "test_3_3", "test_4_4", "train_4_4_solved_by_beam25"])
def test_published_answers_in_one_variable(shared_data: Path, name: str) -> None:
    assert own_answers(shared_data, name) == {Outcome.CORRECT: 500 if "train" in name else 1000}


@pytest.mark.parametrize(
    ("name", "outcomes"),
    [
        ("validation_single", {Outcome.CORRECT: 128}),
        ("example_single_a1_mixed", {Outcome.CORRECT: 300}),
        ("validation_multi", {Outcome.CORRECT: 128}),
        ("validation_on_singlets", {Outcome.CORRECT: 128}),
        ("validation_multi_lost_signs", {Outcome.WRONG: 112, Outcome.TRIVIAL: 16}),
    ],
)
def test_other_published_answers(shared_data: Path, name: str, outcomes: dict[Outcome, int]) -> None:
    assert own_answers(shared_data, name) == outcomes


def own_answers(shared_data: Path, name: str) -> dict[Outcome, int]:
    lines = (shared_data / "polynomial" / f"{name}.txt").read_text("utf-8").replace("?", "⁇").splitlines()
    return dict(Counter(check(*line.split("⁇")) for line in lines))


def test_a_prompt_is_read_once_for_its_group() -> None:
    read_target.cache_clear()
    for completion in ("a", "^ a P 2", "^ a P 3"):
        check(F, completion)
    assert read_target.cache_info().misses == 1


@pytest.mark.parametrize("integral", [True, False])
@pytest.mark.parametrize(("inner", "right"), [("+ ^ a P 2 a", True), ("+ ^ a P 2 * P 2 a", False)])
def test_nothing_depends_on_the_prime(inner: str, right: bool, integral: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small prime many wrong answers agree modulo it; the exact step must still find them."""
    f = parse("+ P 1 ^ + ^ a P 2 a P 3")
    for prime in (2, 3, 5, 7):
        monkeypatch.setattr(composition, "PRIME", prime)
        assert has_left_factor(Target(f), parse(inner), integral) is right


def test_agreement_modulo_the_prime_is_not_enough() -> None:
    """f and the answer's polynomials differ by multiples of the prime only."""
    prime = " ".join(str(composition.PRIME))
    assert check(f"+ * P {prime} a ^ ^ a P 2 P 2", "^ a P 2") == Outcome.WRONG
    assert check(f"+ * P {prime} a0 ^ {SQUARES} P 2", SQUARES) == Outcome.WRONG
    assert check(f"+ * P {prime} a0 ^ {SQUARES} P 2", f"^ b P 2 & {SQUARES}") == Outcome.WRONG
    assert check(f"^ * P {prime} ^ a P 2 P 2", f"* P {prime} ^ a P 2") == Outcome.CORRECT


def chain(operator: str, parts: list[str]) -> str:
    return f"{operator} " * (len(parts) - 1) + " ".join(parts)


def dense(seed: int, degree: int, bits: int, name: str = "a") -> str:
    draw = random.Random(seed)
    coefficients = ["PN"[draw.random() < 0.5] + " ".join(str(draw.getrandbits(bits) | 1)) for _ in range(degree + 1)]
    return chain("+", [f"* {c} ^ {name} P {' '.join(str(i))}" for i, c in enumerate(coefficients)])


MANY = chain("+", [f"a{i}" for i in range(20)])
MANY_SQUARES = chain("+", [f"^ a{i} P 2" for i in range(20)])
PAIRS = chain("*", [f"+ a{2 * i} a{2 * i + 1}" for i in range(10)])  # 1024 terms when expanded
PRIME_DIGITS = " ".join(str(composition.PRIME))
HOSTILE = {
    "tower of powers": (F, "^ " * 5000 + "a" + " P 9" * 5000),
    "deep sum": (F, "+ " * 16_000 + "a " * 16_001),
    "deep product of ones": (F, "* " * 10_000 + "P 1 " * 10_001),
    "deep product of nines": (F, "* " * 8_000 + "P 9 " * 8_001),
    "scaled again and again": (F, "* P 1 " * 3000 + f"^ {MANY} P 3"),
    "sum of variables to a power": (F, f"^ {MANY} P 6 4"),
    "product of sums": (F, chain("*", [f"+ a{2 * i} a{2 * i + 1}" for i in range(16)])),
    "largest expansion, twice": (PAIRS, PAIRS),
    "product of dense polynomials": (F, f"* {dense(1, 120, 250)} {dense(2, 100, 250)}"),
    "power of a dense polynomial": (F, f"^ {dense(3, 20, 60)} P 1 2"),
    "long integer": (F, "P" + " 9" * 30_000),
    "blanks": (F, "P" + " \t" * 30_000 + "2"),
    "one long word": (F, "x" * 65_000),
    "longest text": (F, "P 1 " * 1_000_000),
    "division that would grow": (dense(4, 256, 150), dense(5, 2, 300)),
    "the same, invisible modulo the prime": (dense(6, 256, 150), f"+ * P {PRIME_DIGITS} ^ a P 2 {dense(7, 1, 300)}"),
    "all invisible modulo the prime": (f"* P {PRIME_DIGITS} {dense(8, 256, 150)}", f"* P {PRIME_DIGITS} ^ a P 2"),
    "right, of high degree": (f"^ {dense(9, 100, 40)} P 2", dense(9, 100, 40)),
    "quotients of many terms": (
        chain("+", [f"^ a{i} P 5 0" for i in range(20)]),
        f"+ ^ a0 P 2 * N 1 {MANY_SQUARES.replace('a0', 'a1')}",
    ),
    "zero times a huge power": (F, f"+ b1 * b2 ^ b0 P 2 0 0 & {dense(10, 50, 9)} & {F} & P 0"),
    "huge powers that cancel": (F, f"+ b1 + ^ b0 P 9 9 * N 1 ^ b2 P 9 9 & {MANY} & {F} & {MANY}"),
    "powers that cancel": (F, f"+ b1 + ^ b0 P 4 * N 1 ^ b2 P 4 & {MANY} & {F} & {MANY}"),
    "many inners": (F, "b0" + f" & {MANY}" * 31),
    "many large inners": (PAIRS, "b0" + f" & {PAIRS}" * 31),
    "too many inners": (F, "&" * 60_000),
    "power of a large inner": (PAIRS, f"^ b P 2 5 & {PAIRS}"),
}


def check_counted(prompt: str, completion: str) -> None:
    """In both rings, prompt not yet read. The bounds are those of some 50 ms on a machine of 2024."""
    for ring in ("ZZ", "QQ"):
        read_target.cache_clear()
        outcome, work = counted(partial(check, prompt, completion, ring))
        assert outcome in ("correct", "wrong", "trivial", "unparseable")
        assert work.instructions <= 4_000_000
        assert work.characters <= 2 * 65_536, "prompt and completion"
        assert work.products <= 20_000
        assert work.terms <= 1024
        assert work.bits <= 1040, "1024, and what sums of such add"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_stalls_the_check(name: str) -> None:
    prompt, completion = HOSTILE[name]
    check_counted(f"{prompt} ⁇", completion)


def test_work_that_is_done_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its limits, the check does more than the bounds allow, and each kind of work shows it."""
    for module, limit in ((notation, "MAX_CHARACTERS"), (verifier, "MAX_CHARACTERS"), (composition, "MAX_EXPANSION")):
        monkeypatch.setattr(module, limit, 10**6)
    monkeypatch.setattr(notation.Budget, "charge", lambda budget, operations: None)
    monkeypatch.setattr(notation.Budget, "keep", lambda budget, terms: None)
    letters = counted(partial(check, F, "P 1 " * 40_000))[1]
    long_sum = counted(partial(check, F, chain("+", ["a"] * 100_000)))[1]
    expansion = counted(partial(check, F, f"+ b1 + ^ b0 P 5 * N 1 ^ b2 P 5 & {MANY} & {F} & {MANY}"))[1]
    assert letters.characters > 2 * 65_536
    assert long_sum.instructions > 4_000_000
    assert expansion.products > 20_000


TOKENS = ["+", "*", "^", "P", "N", *"0123456789", "a", "b", "a0", "a1", "a20", "b0", "b1", "&", "⁇", "?", "□", "x"]
token_texts = st.lists(st.sampled_from(TOKENS), max_size=60).map(" ".join)
small = st.one_of(st.sampled_from(["a", "a0", "a1", "b0", "P 1", "N 9 9 9", F, MANY, SQUARES]), token_texts)
nested = st.recursive(
    small,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, st.sampled_from("+*&"), inner, inner),
        st.builds("^ {} P {}".format, inner, st.sampled_from(["2", "3", "9", "40", "256"])),
        st.builds("{} & {}".format, inner, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(prompt=st.one_of(nested, st.just(F)), completion=st.one_of(nested, st.text(max_size=40)))
def test_any_text_gets_an_outcome_soon(prompt: str, completion: str) -> None:
    check_counted(prompt, completion)


def test_small_polynomials_have_the_outcome_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are divided at once; larger ones only after a look modulo a prime."""
    draw = random.Random(3)

    def polynomial(degree: int, size: int) -> str:
        terms = [f"+ * {draw.choice('PN')} {draw.randint(0, size)} ^ a P {power}" for power in range(degree)]
        return " ".join([*terms, f"* P {draw.randint(1, 3)} ^ a P {degree}"])

    def composed(outer: list[int], inner: str) -> str:
        text = f"P {outer[0]}"
        for coefficient in outer[1:]:
            text = f"+ P {coefficient} * {inner} {text}"
        return text

    pairs = []
    for _ in range(300):
        inner = polynomial(draw.randint(1, 3), draw.choice([1, 9, 10**9]))
        f = composed([draw.randint(0, 5) for _ in range(draw.randint(2, 4))], inner)
        other = polynomial(draw.randint(1, 3), 9)
        pairs += [(f, inner), (f, other), (f, f"* P 2 {inner}"), (f, f"+ P 7 {inner}"), (f"+ a {f}", inner)]
    found = [[check(f, inner, ring) for f, inner in pairs] for ring in ("ZZ", "QQ")]
    assert {"correct", "wrong", "trivial"} <= {str(outcome) for outcomes in found for outcome in outcomes}
    monkeypatch.setattr(composition, "SMALL_DEGREE", 0)
    assert found == [[check(f, inner, ring) for f, inner in pairs] for ring in ("ZZ", "QQ")]
