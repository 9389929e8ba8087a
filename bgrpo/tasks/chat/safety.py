"""A safety score from the extra ``chat``: how surely a text is free of profanity."""

from __future__ import annotations


def polite(prompts: list, completions: list, **_: list) -> list[float]:
    """1 - the probability of profanity, for each completion of several groups, by alt-profanity-check.

    In the form of TRL's reward functions. Raises ImportError where the package is not installed.
    """
    from profanity_check import predict_prob

    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [1.0 - float(probability) for probability in predict_prob(texts)]
