"""The generator: every line is right by paths that do not share its code, and the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from reference.polynomial_oracle import distinct_points, evaluate, interpolate, judge
from sympy import QQ

from bgrpo.errors import UserError
from bgrpo.tasks.polynomial.generator import CHUNK, Generated, category, draw, draw_chunk, generate, select
from bgrpo.tasks.polynomial.notation import format_polynomial, parse, split_prompt
from bgrpo.tasks.polynomial.options import GeneratorOptions
from bgrpo.tasks.polynomial.verifier import check

OPTIONS: dict[str, dict[str, Any]] = {
    "single": {"degrees": [[2, 2], [3, 4], [4, 4]], "coefficients": 20},
    "positive": {"degrees": ["2,2"], "coefficients": 5, "leading": "positive"},
    "indexed": {"degrees": [[2, 3]], "variable": "a1"},
    "with outer": {"kind": "single_with_outer", "degrees": [[2, 3], [3, 2]]},
    "multi": {"kind": "multi", "degrees": [[3, 3], [2, 3]], "coefficients": 5},
    "more inners": {"kind": "multi", "degrees": [[2, 2]], "coefficients": 9, "variables": 5, "inners": 3, "terms": 4},
    "singlet": {"kind": "singlet", "degrees": [[2, 2], [3, 2]], "coefficients": 5, "variables": 12, "terms": 5},
}


def problems(name: str, count: int = 200, seed: int = 5) -> list[Generated]:
    return list(generate(GeneratorOptions.from_dict(OPTIONS[name]), count, seed))


def at_integers(seed: int) -> Callable[[str], int]:
    """A value for every variable name."""
    return lambda name: random.Random(f"{seed} {name}").randint(-30, 30)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_answer_is_right_at_integer_points(name: str) -> None:
    """From the text alone. With an inner only, the outer is interpolated, and must then fit at further points."""
    for problem in problems(name):
        parts = problem.answer.split(" & ")
        if len(parts) > 1:
            for seed in range(5):
                values = [evaluate(part, at_integers(seed)) for part in parts[1:]]
                by_name = {"b": values[0]} | {f"b{i}": value for i, value in enumerate(values)}
                assert evaluate(parts[0], by_name.__getitem__) == evaluate(problem.expanded, at_integers(seed))
            continue
        points = distinct_points(
            lambda seed, h=parts[0]: evaluate(h, at_integers(seed)),
            lambda seed, f=problem.expanded: evaluate(f, at_integers(seed)),
            needed=8,
        )
        outer = interpolate(points[:5])  # outer degrees go up to 4
        assert all(outer(QQ(x)) == y for x, y in points[5:])
        assert all(coefficient.denominator == 1 for coefficient in outer.coeffs())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_answer_verifies(name: str) -> None:
    outcomes = Counter(check(problem.prompt, problem.answer) for problem in problems(name, 500))
    assert outcomes == {"correct": 500}
    assert {judge(problem.expanded, problem.answer, rational=False) for problem in problems(name, 40)} == {"correct"}


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_in_one_style_and_distinct(name: str) -> None:
    found = problems(name, 500)
    assert len({problem.prompt for problem in found}) == 500
    for problem in found:
        for text in [problem.expanded, *problem.answer.split(" & ")]:
            polynomial = parse(text)
            unit_coefficients = polynomial.names in (("a",),)
            assert format_polynomial(polynomial, unit_coefficients) == text
        assert problem.line == f"{problem.expanded} ⁇ {problem.answer}"


def test_degrees_coefficients_and_labels() -> None:
    options = GeneratorOptions.from_dict({"degrees": [[2, 3], [3, 2]], "coefficients": 3})
    seen: Counter[int] = Counter()
    for problem in generate(options, 600, 0):
        inner = parse(problem.answer)
        assert problem.category == f"{6 // inner.degree}_{inner.degree}"
        assert parse(problem.expanded).degree == 6
        seen.update(inner.terms.get(exponent, 0) for exponent in range(inner.degree))
    assert set(seen) == set(range(-3, 4))
    assert min(seen.values()) > 0.8 * max(seen.values())  # uniform


def test_positive_leading_coefficients() -> None:
    for problem in problems("positive"):
        inner, f = parse(problem.answer), parse(problem.expanded)
        assert inner.terms[2] > 0 and f.terms[4] > 0


@pytest.mark.parametrize("name", ["multi", "more inners"])
def test_every_inner_is_used(name: str) -> None:
    for problem in problems(name):
        outer, *inners = problem.answer.split(" & ")
        assert set(parse(outer).names) == {f"b{i}" for i in range(len(inners))}


def test_pure_function_of_options_count_and_seed() -> None:
    options = GeneratorOptions(degrees=((2, 2),))
    hundred = list(generate(options, 100, 3))
    assert hundred == list(generate(options, 100, 3))
    assert hundred == list(generate(options, 250, 3))[:100]
    assert not {p.prompt for p in hundred} & {p.prompt for p in generate(options, 100, 4)}


def test_first_problem_is_pinned() -> None:
    """So that data of a seed stays the same from release to release."""
    first = next(generate(GeneratorOptions(degrees=((2, 2),), coefficients=5), 1, 0))
    assert (
        first.line
        == "+ N 6 0 + * P 1 8 0 a + * N 5 3 ^ a P 2 + * N 1 0 0 ^ a P 3 * N 2 0 ^ a P 4 ⁇ + P 4 + * N 5 a * N 2 ^ a P 2"
    )


def test_chunks_hold_the_same_candidates() -> None:
    options = GeneratorOptions(degrees=((2, 2),))
    chunk = draw_chunk(options, 7, 1)
    assert len(chunk) == CHUNK
    assert [chunk[0], chunk[-1]] == [draw(options, 7, CHUNK), draw(options, 7, 2 * CHUNK - 1)]


def test_excluded_polynomials_do_not_come_in_any_writing() -> None:
    options = GeneratorOptions(degrees=((2, 2),), coefficients=2)
    test = list(generate(options, 100, 1))
    backwards = []
    for problem in test:
        polynomial = parse(problem.expanded)
        terms = [f"* {integer(value)} ^ a P {key}" for key, value in sorted(polynomial.terms.items(), reverse=True)]
        backwards.append("+ " * (len(terms) - 1) + " ".join(terms) + " ?")
    for exclude in ([problem.prompt for problem in test], backwards, [*backwards, "not a polynomial"]):
        train = list(generate(options, 300, 2, exclude))
        assert len(train) == 300
        assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert {p.prompt for p in generate(options, 300, 2)} & {p.prompt for p in test}  # they would have come


def integer(value: int) -> str:
    return f"{'PN'[value < 0]} {' '.join(str(abs(value)))}"


def test_a_space_that_is_too_small_is_said_to_be() -> None:
    options = GeneratorOptions(degrees=((2, 2),), coefficients=1)
    with pytest.raises(UserError, match=r"only 126 of 1000 distinct problems exist, or nearly: .* larger coefficients"):
        list(generate(options, 1000, 0))
    assert len(list(generate(options, 126, 0))) == 126
    assert len(distinct_compositions()) == 126


def distinct_compositions() -> set[tuple[int, ...]]:
    """Brute force: expanded coefficients of all g(h) with both of degree 2 and coefficients -1, 0, 1."""
    signs = (-1, 0, 1)
    found = set()
    for g0, g1, h0, h1 in ((w, x, y, z) for w in signs for x in signs for y in signs for z in signs):
        for g2, h2 in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            square = (h0 * h0, 2 * h0 * h1, h1 * h1 + 2 * h0 * h2, 2 * h1 * h2, h2 * h2)
            linear = (g0 + g1 * h0, g1 * h1, g1 * h2, 0, 0)
            found.add(tuple(g2 * s + t for s, t in zip(square, linear, strict=True)))
    return found


def test_unusable_candidates_are_skipped() -> None:
    options = GeneratorOptions(degrees=((2, 2),))
    usable = [draw(options, 0, index) for index in range(3)]
    chunks = [[None, usable[0], usable[0]], [usable[1], None], [usable[2]]]
    assert list(select(iter(chunks), options, 3, ())) == usable


@pytest.mark.parametrize(
    ("variables", "degree", "inner_degree", "label"),
    [(1, 6, 2, "3_2"), (1, 6, 4, "d6"), (1, 6, 0, "d6"), (3, 9, 3, "v3_d9"), (0, 0, 0, "d0")],
)
def test_category(variables: int, degree: int, inner_degree: int, label: str) -> None:
    assert category(variables, degree, inner_degree) == label


@pytest.mark.parametrize("pair", ["2,3", ["2,3"], [[2, 3]]])
def test_a_pair_of_degrees_may_stand_alone(pair: Any) -> None:
    assert GeneratorOptions.from_dict({"degrees": pair}).degrees == ((2, 3),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": [[2, 2]]}, "option 'degree' is unknown; did you mean 'degrees'"),
        ({"zzz": 1}, "option 'zzz' is unknown; known: kind, degrees"),
        ({"kind": "double"}, "kind='double': expected one of single, single_with_outer"),
        ({"leading": "negative"}, "leading='negative': expected one of any, positive"),
        ({"degrees": []}, "expected a list of outer,inner pairs"),
        ({"degrees": {"outer": 2}}, "expected a list of outer,inner pairs"),
        ({"degrees": [[2]]}, r"\[2\] is not a pair"),
        ({"degrees": [2]}, "2 is not a pair"),
        ({"degrees": ["2;3"]}, "'2;3' is not a pair"),
        ({"degrees": [[1, 4]]}, "1,4 makes trivial problems"),
        ({"degrees": [[4, 1]]}, "4,1 makes trivial problems"),
        ({"degrees": [[16, 17]]}, "16 × 17 = 272 is above the largest degree 256"),
        ({"coefficients": 0}, "coefficients=0: expected an integer from 1"),
        ({"coefficients": 2.5}, "coefficients=2.5: expected an integer"),
        ({"coefficients": True}, "coefficients=True: expected an integer"),
        ({"coefficients": 2**31, "degrees": [[40, 2]]}, "reach 1340 bits"),
        ({"variable": "x"}, "variable='x': expected a, a0"),
        ({"kind": "multi", "variables": 1}, "variables=1: expected an integer from 2"),
        ({"kind": "multi", "inners": 7}, "uses at most 6 inners, inners=7 is more"),
        ({"terms": 1}, "terms=1: expected an integer from 2"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GeneratorOptions.from_dict(options)


def test_largest_accepted_coefficients_can_be_read() -> None:
    options = GeneratorOptions.from_dict({"coefficients": 2**31, "degrees": [[28, 2]]})
    for problem in generate(options, 20, 0):
        assert check(problem.prompt, problem.answer) == "correct"


def test_prompts_end_in_the_separator() -> None:
    problem = problems("single", 1)[0]
    assert problem.prompt.endswith(" ⁇") and split_prompt(problem.prompt).strip() == problem.expanded
