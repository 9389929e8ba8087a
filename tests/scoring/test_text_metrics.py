"""Metrics of texts against hand-made values, closed forms, and the libraries' own calls."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import GRAM_METRICS, TEXT_METRICS
from bgrpo.errors import UserError
from bgrpo.scoring.text_metrics import METRICS, OF_GRAMS, TextGroup, last_number, normalized, text_metric


def scores(name: str, completions: list[str], *answers: str) -> list[float | None]:
    return text_metric(name)(TextGroup(completions, [len(text.split()) for text in completions], answers))


@pytest.mark.parametrize(
    ("name", "completion", "answers", "expected"),
    [
        ("exact_match", " The  Eiffel tower!", ["eiffel tower"], 1.0),
        ("exact_match", "Eiffel towers", ["eiffel tower"], 0.0),
        ("exact_match", "b", ["a b", "b"], 1.0),
        ("contains", "It is Paris, I think.", ["paris"], 1.0),
        ("contains", "comparison", ["paris"], 0.0),
        ("contains", "It is Lyon.", ["Paris"], 0.0),
        ("token_f1", "the cat sat", ["a cat sat down"], 0.8),  # cat, sat of 2 and 3 words
        ("token_f1", "dog", ["cat"], 0.0),
        ("word_f1", "the cat, cat", ["cat the cat"], 2 / 3),  # "cat," is another word
        ("word_f1", "", ["a"], 0.0),
        # what the package rouge 1.0.1 gives:
        ("rouge_l_words", "i play the violin . i love it", ["i play violin . it is fun"], 0.6666666616666668),
        ("rouge_l_words", "good good good", ["good day"], 0.6666666622222223),
        ("rouge_l_words", "a b c d e", ["e d c b a"], 0.19999999500000015),
        ("rouge_l_words", "...", ["a"], 0.0),
        ("length_match", "a b", ["a b c d"], 2.718281828459045**-1),
        ("length_match", "a b c", ["a b"], 2.718281828459045**-0.5),
        ("length_match", "a b c", ["a b", "x y z"], 1.0),
        ("token_f1", "", ["the"], 1.0),  # both are nothing once normalised
        ("token_f1", "", ["cat"], 0.0),
        ("number_match", "so 6 * 7 = 42.", ["#### 42"], 1.0),
        ("number_match", "$1,234.50 in all", ["1234.5"], 1.0),
        ("number_match", "42 apples, 7 pears", ["42"], 0.0),
        ("number_match", "none", ["42"], 0.0),
        ("number_match", "yes", ["yes"], None),
        ("completion_words", "a b  c", [], 3.0),
    ],
)
def test_values(name: str, completion: str, answers: list[str], expected: float | None) -> None:
    assert scores(name, [completion], *answers) == [expected if expected is None else pytest.approx(expected)]


@pytest.mark.parametrize("name", ["exact_match", "contains", "token_f1", "rouge_l", "bleu", "number_match"])
def test_without_an_answer_they_do_not_apply(name: str) -> None:
    assert scores(name, ["a", "b"]) == [None, None]


def test_rouge_and_bleu_are_the_libraries_own() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu

    text, answers = "the cats sat on a mat today", ["the cat sat on the mat", "nobody sat there"]
    for name, kind in {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}.items():
        rouge = RougeScorer([kind], use_stemmer=True)
        best = max(rouge.score(answer, text)[kind].fmeasure for answer in answers)
        assert scores(name, [text], *answers) == [best]
    assert scores("bleu", [text], *answers) == [pytest.approx(sentence_bleu(text, answers).score / 100)]
    others = ["the cat sat", "a dog ran"]
    expected = sentence_bleu(text, others).score / 100
    assert scores("self_bleu", [text, *others])[0] == pytest.approx(expected)
    assert scores("self_bleu", [text]) == [None]


words = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)


@given(st.lists(words, min_size=1, max_size=5), st.integers(1, 3))
def test_distinct_adds_up_to_the_groups_own(texts: list[str], n: int) -> None:
    grams = [[tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)] for text in texts]
    everything = [gram for part in grams for gram in part]
    values = scores(f"distinct_{n}", texts)
    assert [value is None for value in values] == [not part for part in grams]
    if everything:
        weighted = sum(value * len(part) for value, part in zip(values, grams, strict=True) if value is not None)
        assert weighted / len(everything) == pytest.approx(len(set(everything)) / len(everything))


@given(words, st.integers(1, 3))
def test_repetition_counts_what_was_said_before(text: str, n: int) -> None:
    parts = text.split()
    grams = [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    repeated = sum(count - 1 for count in Counter(grams).values())
    (value,) = scores(f"repetition_{n}", [text])
    assert value == (pytest.approx(repeated / len(grams)) if grams else None)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_any_text_has_a_score_within_bounds(first: str, second: str, answer: str) -> None:
    for name in [*METRICS, *(f"{stem}_2" for stem in OF_GRAMS)]:
        for value in scores(name, [first, second], answer):
            assert value is None or (value >= 0 if name.startswith("completion_") else -1e-9 <= value <= 1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000,000", 10**6),
        ("-3.5", Fraction(-7, 2)),
        ("x", None),
        ("3.", 3),
        (".5", Fraction(1, 2)),
        ("9" * 500, None),
    ],
)
def test_last_number(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number


def test_normalized_leaves_words() -> None:
    assert normalized("An  apple, a day.") == "apple day"


@pytest.mark.parametrize("name", ["", "bleurt", "distinct", "distinct_", "distinct_0", "distinct_12", "rouge_l_2"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected one of exact_match"):
        text_metric(name)


def test_the_configuration_knows_the_metrics_there_are() -> None:
    assert (tuple(METRICS), tuple(OF_GRAMS)) == (TEXT_METRICS, GRAM_METRICS)
