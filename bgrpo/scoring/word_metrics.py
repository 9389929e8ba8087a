"""Overlap of words as they stand, and length, as the research code of LAPDOG computes them.

Other than ``token_f1`` and ``rouge_l``, nothing is normalised or stemmed: "good," and "good" are two words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def word_f1(completion: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words that blanks separate, repetitions counted."""
    words, known = completion.split(), answer.split()
    common = sum((Counter(words) & Counter(known)).values())
    return 2 * common / (len(words) + len(known)) if common else 0.0


def rouge_l_words(completion: str, answer: str) -> float:
    """ROUGE-L of whole texts as the package ``rouge`` 1.0.1 has it: F of the union of common subsequences.

    A text is cut into sentences at each full stop. Of every pair of sentences the words of a longest common subsequence
    are taken. Recall and precision are over *different* words, so repeating a word costs nothing. 0 for an empty text.
    """
    hypothesis, reference = _sentences(completion), _sentences(answer)
    if not hypothesis or not reference:
        return 0.0
    common = {word for known in reference for said in hypothesis for word in _common_subsequence(known, said)}
    recall = len(common) / len({word for sentence in reference for word in sentence})
    precision = len(common) / len({word for sentence in hypothesis for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def length_match(completion: str, answer: str) -> float:
    """exp(-|1 - r|) of the ratio r of their words, exp(-2 |1 - r|) where the completion is shorter; 0 for no answer."""
    words, known = len(completion.split()), len(answer.split())
    if not known:
        return 0.0
    ratio = words / known
    return math.exp(-abs(1 - ratio) * (2 if ratio < 1 else 1))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_subsequence(reference: Sequence[str], hypothesis: Sequence[str]) -> list[str]:
    """A longest one; of several that which is found from the end, going back in the hypothesis first."""
    lengths = [[0] * (len(hypothesis) + 1) for _ in range(len(reference) + 1)]
    for i, word in enumerate(reference, 1):
        for j, other in enumerate(hypothesis, 1):
            same = lengths[i - 1][j - 1] + 1
            lengths[i][j] = same if word == other else max(lengths[i - 1][j], lengths[i][j - 1])
    found, i, j = list[str](), len(reference), len(hypothesis)
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            found.append(reference[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]
