"""The names of metrics of text, which :mod:`bgrpo.scoring.text_metrics` computes: known before anything is imported."""

from __future__ import annotations

from bgrpo.settings.spelling import nearest

EMBEDDING_SIMILARITY = "embedding_similarity"
"""The metric that a sentence encoder computes."""

TEXT_METRICS = (
    "exact_match",
    "contains",
    "number_match",
    "token_f1",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "word_f1",
    "rouge_l_words",
    "length_match",
    "bleu",
    "self_bleu",
    "completion_tokens",
    "completion_words",
)

GRAM_METRICS = ("distinct", "repetition")
"""Of n-grams: the name ends with their length, as ``distinct_2``."""


def gram_metric(name: str) -> tuple[str, int] | None:
    """Which of :data:`GRAM_METRICS` this is, and its n (1 to 9); None for any other name."""
    stem, _, n = name.rpartition("_")
    return (stem, int(n)) if stem in GRAM_METRICS and n in tuple("123456789") else None


def unknown_metric(name: str) -> str | None:
    """What to say of a name that no metric has, with the one that was probably meant; None for a metric's name."""
    if name in (*TEXT_METRICS, EMBEDDING_SIMILARITY) or gram_metric(name) is not None:
        return None
    known = [*TEXT_METRICS, *(f"{stem}_N" for stem in GRAM_METRICS), EMBEDDING_SIMILARITY]
    meant = nearest(name, [*TEXT_METRICS, EMBEDDING_SIMILARITY])
    return f"expected one of {', '.join(known)}" + (f"; did you mean {meant}?" if meant else "")
