"""What papers report of a policy's answers: overlap with the known ones, diversity, and perplexity.

Of each problem, the best over its known answers: ``exact_match`` and ``token_f1`` (SQuAD), ``rouge_1``, ``rouge_2`` and
``rouge_l`` (F, stemmed; the package rouge-score), ``hits@1``: 1 where a known answer is the likeliest per token of the
row's ``candidates``. Of all answers together: ``corpus_bleu`` (sacrebleu, divided by 100), ``distinct_1`` and
``distinct_2`` (different n-grams / all n-grams; Li et al. 2016), ``words`` per answer, and ``perplexity`` of the first
known answers, per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bgrpo.evaluation.intervals import Interval, intervals
from bgrpo.scoring.text_metrics import TextGroup, text_metric

OF_EACH = ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l")
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """What a policy answers, and what it thinks of the known answer.

    Attributes:
        text: its answer.
        answers: known ones; may be empty.
        known_logprob: log-probability of the first known answer with its end; None where there is none.
        known_tokens: how many tokens that has.
        hit: whether a known answer is the likeliest of the candidates; None where there are none.
    """

    text: str
    answers: tuple[str, ...]
    known_logprob: float | None = None
    known_tokens: int = 0
    hit: bool | None = None

    def metrics(self) -> dict[str, float | None]:
        """Those of one answer; None where there is no known answer."""
        group = TextGroup([self.text], [0], self.answers)
        found = {name: text_metric(name)(group)[0] for name in OF_EACH}
        return found | {"hits@1": None if self.hit is None else float(self.hit)}


def answer_metrics(measured: Sequence[MeasuredAnswer], seed: int = 0) -> dict[str, Interval]:
    """Every metric that says anything; those of all answers together have no interval.

    Args:
        measured: at least one.
        seed: of the bootstrap.
    """
    columns: dict[str, list[float]] = {}
    for each in measured:
        for name, value in each.metrics().items():
            columns.setdefault(name, []).append(math.nan if value is None else value)
    columns = {name: column for name, column in columns.items() if not all(map(math.isnan, column))}
    return intervals(columns, seed) | {
        name: Interval(value, math.nan, math.nan) for name, value in _of_all(measured).items()
    }


def _of_all(measured: Sequence[MeasuredAnswer]) -> dict[str, float]:
    texts = [each.text for each in measured]
    found: dict[str, float] = {}
    known = [each for each in measured if each.answers]
    if known:
        found["corpus_bleu"] = corpus_bleu([each.text for each in known], [each.answers for each in known])
    for n in (1, 2):
        grams = [gram for text in texts for gram in _grams(text.split(), n)]
        if grams:
            found[f"distinct_{n}"] = len(set(grams)) / len(grams)
    found["words"] = sum(len(text.split()) for text in texts) / len(texts)
    if tokens := sum(each.known_tokens for each in measured):
        loss = -sum(each.known_logprob for each in measured if each.known_logprob is not None) / tokens
        found["perplexity"] = math.exp(min(loss, _LARGEST_EXPONENT))
    return found


def corpus_bleu(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Of all texts together, each against all its known answers; from 0 to 1."""
    from sacrebleu.metrics import BLEU

    most = max(map(len, answers))
    streams = [[of_text[n] if n < len(of_text) else None for of_text in answers] for n in range(most)]
    return float(BLEU().corpus_score(list(texts), streams).score) / 100  # type: ignore[arg-type]  # None: no such answer


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
