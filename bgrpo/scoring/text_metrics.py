"""Metrics of texts as scores: of one completion, against known answers, or among the completions of a group.

All are higher for more of what their name says; all but lengths lie in [0, 1]. A completion that a metric says nothing
about (no known answer) has None.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bgrpo.config import gram_metric, unknown_metric
from bgrpo.errors import UserError
from bgrpo.scoring.word_metrics import length_match, rouge_l_words, word_f1
from bgrpo.tasks.answers import normalized

Scores = list[float | None]
MOST_DIGITS = 400
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")


@dataclass(frozen=True, slots=True)
class TextGroup:
    """What metrics read of a group.

    Attributes:
        completions: texts, best beam first.
        tokens: how many tokens each has.
        answers: known answers of the prompt, any of which will do; may be empty.
    """

    completions: Sequence[str]
    tokens: Sequence[int]
    answers: Sequence[str] = ()


Metric = Callable[[TextGroup], Scores]


def text_metric(name: str) -> Metric:
    """The metric called ``name``; those in :data:`OF_GRAMS` end with the length n of their n-grams, as ``distinct_2``.

    Raises:
        UserError: there is none of this name, or it is no metric of text alone.
    """
    if name in METRICS:
        return METRICS[name]
    of_grams = gram_metric(name)
    if of_grams is None:
        raise UserError(f"metric {name!r}: {unknown_metric(name) or 'it needs a sentence encoder'}")
    stem, n = of_grams
    return functools.partial(OF_GRAMS[stem], n=n)


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; thousands may be separated by commas. None when there is none."""
    found = _NUMBER.findall(text)
    digits = found[-1].replace(",", "").rstrip(".") if found else ""
    return Fraction(digits) if digits and len(digits) <= MOST_DIGITS else None


def _against_answers(score: Callable[[str, str], float], group: TextGroup) -> Scores:
    """The best over the known answers."""
    if not group.answers:
        return [None] * len(group.completions)
    return [max(score(completion, answer) for answer in group.answers) for completion in group.completions]


def _exact_match(completion: str, answer: str) -> float:
    return float(normalized(completion) == normalized(answer))


def _contains(completion: str, answer: str) -> float:
    return float(f" {normalized(answer)} " in f" {normalized(completion)} ")


def _token_f1(completion: str, answer: str) -> float:
    """Harmonic mean of precision and recall over normalised words (SQuAD)."""
    words, known = normalized(completion).split(), normalized(answer).split()
    common = sum((Counter(words) & Counter(known)).values())
    if not words or not known:
        return float(words == known)
    return 2 * common / (len(words) + len(known))


def _number_match(group: TextGroup) -> Scores:
    known = {number for number in map(last_number, group.answers) if number is not None}
    if not known:
        return [None] * len(group.completions)
    return [float(last_number(completion) in known) for completion in group.completions]


@functools.cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


def _rouge_of(completion: str, answer: str, kind: str) -> float:
    """F-measure of common words, pairs of words or the longest common subsequence, stemmed."""
    return float(_rouge(kind).score(answer, completion)[kind].fmeasure)


@functools.cache
def _sacrebleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _bleu_of(completion: str, references: Sequence[str]) -> float:
    return float(_sacrebleu().sentence_score(completion, list(references)).score) / 100


def _bleu(group: TextGroup) -> Scores:
    """Sentence BLEU against all known answers together."""
    if not group.answers:
        return [None] * len(group.completions)
    return [_bleu_of(completion, group.answers) for completion in group.completions]


def _self_bleu(group: TextGroup) -> Scores:
    """Sentence BLEU against the other completions of the group: high where they say the same."""
    texts = group.completions
    if len(texts) < 2:
        return [None] * len(texts)
    return [_bleu_of(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)]


def _completion_tokens(group: TextGroup) -> Scores:
    return [float(count) for count in group.tokens]


def _completion_words(group: TextGroup) -> Scores:
    return [float(len(text.split())) for text in group.completions]


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _repetition(group: TextGroup, n: int) -> Scores:
    """Share of a completion's n-grams that it has said before; None where it is shorter than n words."""
    found = [_grams(text, n) for text in group.completions]
    return [1 - len(set(grams)) / len(grams) if grams else None for grams in found]


def _distinct(group: TextGroup, n: int) -> Scores:
    """A completion's part in the group's distinct-n (Li et al. 2016: different n-grams / all n-grams).

    The mean, over the completion's n-grams, of 1 / occurrences in the group. Its mean over the group, weighted by
    n-grams, is distinct-n itself, which as one value for all completions would teach nothing.
    """
    found = [_grams(text, n) for text in group.completions]
    counts = Counter(gram for grams in found for gram in grams)
    return [sum(1 / counts[gram] for gram in grams) / len(grams) if grams else None for grams in found]


METRICS: dict[str, Metric] = {
    "exact_match": functools.partial(_against_answers, _exact_match),
    "contains": functools.partial(_against_answers, _contains),
    "number_match": _number_match,
    "token_f1": functools.partial(_against_answers, _token_f1),
    "rouge_1": functools.partial(_against_answers, functools.partial(_rouge_of, kind="rouge1")),
    "rouge_2": functools.partial(_against_answers, functools.partial(_rouge_of, kind="rouge2")),
    "rouge_l": functools.partial(_against_answers, functools.partial(_rouge_of, kind="rougeL")),
    "word_f1": functools.partial(_against_answers, word_f1),
    "rouge_l_words": functools.partial(_against_answers, rouge_l_words),
    "length_match": functools.partial(_against_answers, length_match),
    "bleu": _bleu,
    "self_bleu": _self_bleu,
    "completion_tokens": _completion_tokens,
    "completion_words": _completion_words,
}
OF_GRAMS: dict[str, Callable[..., Scores]] = {"distinct": _distinct, "repetition": _repetition}
