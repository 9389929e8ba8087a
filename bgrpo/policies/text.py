"""From text to tokens and back, without losing a token silently."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import models
from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError


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
