"""From text to tokens and back, without losing a token silently."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from tokenizers import models
from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError

TEXTS_AT_ONCE = 1024
"""Texts encoded together where only their lengths are wanted."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, no special token added.

    Raises:
        UserError: a text is empty, or holds a token that the vocabulary lacks.
    """
    _check_known(tokenizer, texts)
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"prompt {text!r} is empty: expected at least one token")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise UserError(f"{_shorten(text)!r}: holds a token that is not in the policy's vocabulary")
    return encoded


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one prompt, as :func:`encode_texts`."""
    return encode_texts(tokenizer, [text])[0]


def longest_text(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[int, int]:
    """Index and number of tokens of the longest text, the first of several, in bounded memory; 0, 0 of none.

    Where the tokenizer is word-level and splits at blanks, a text has the tokens of its words, so each distinct word is
    encoded once: a million texts of a small vocabulary take seconds, not minutes.

    Raises:
        UserError: as :func:`encode_texts`.
    """
    best, longest = 0, 0
    count = _count_by_words(tokenizer) if _splits_at_blanks(tokenizer) else partial(_counts, tokenizer)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        counts = count(texts[start : start + TEXTS_AT_ONCE])
        if max(counts) > longest:
            longest = max(counts)
            best = start + counts.index(longest)
    return best, longest


def _counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in encode_texts(tokenizer, texts)]


def _count_by_words(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[int]]:
    """:func:`_counts` from the counts of words, which it keeps; texts with a word that is refused go the long way."""
    known: dict[str, int] = {"": 0}

    def count(texts: Sequence[str]) -> list[int]:
        new = set().union(*(text.split(" ") for text in texts)) - known.keys()
        try:
            known.update(zip(new, _counts(tokenizer, list(new)), strict=True))
        except UserError:
            return _counts(tokenizer, texts)  # which names the text
        counts = [sum(map(known.__getitem__, text.split(" "))) for text in texts]
        agrees = all(counts) and counts[:1] == _counts(tokenizer, texts[:1])  # not where each text has a start token
        return counts if agrees else _counts(tokenizer, texts)

    return count


def _splits_at_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of a text are those of its words, one after the other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel) or not len(tokenizer):
        return False
    tree = json.loads(backend.to_str())
    splitter = tree["pre_tokenizer"] or {}
    first: dict[str, str] = next(iter(splitter.get("pretokenizers", [splitter])), {})
    normalizer = tree["normalizer"] or {"type": "Replace", "pattern": {"String": ""}}
    return (
        first.get("type") == "WhitespaceSplit"
        and normalizer["type"] == "Replace"
        and " " not in normalizer["pattern"].get("String", " ")
        and not any(" " in token["content"] for token in tree["added_tokens"])
    )


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a completion: everything before the first end token, pads at its end left out.

    A pad that the policy wrote inside its answer stays, so that a checker sees the answer as it is.
    """
    kept = list(ids)
    if tokenizer.eos_token_id in kept:
        kept = kept[: kept.index(tokenizer.eos_token_id)]
    while kept and kept[-1] == tokenizer.pad_token_id:
        kept.pop()
    return str(tokenizer.decode(kept))


def _check_known(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Name the first word that a word-level vocabulary without an unknown token lacks; others know every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel) or tokenizer.unk_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            if word not in vocabulary:
                raise UserError(f"{_shorten(text)!r}: the policy's vocabulary has no token {word!r}")


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
