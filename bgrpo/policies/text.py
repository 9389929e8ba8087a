"""From text to tokens and back, without losing a token silently."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError, one_line, reading, summary
from bgrpo.policies.template_bounds import first_unbounded

TEXTS_AT_ONCE = 1024
"""Texts encoded together where only their lengths are wanted."""


class UnreadableText(UserError):
    """A text that a policy cannot read.

    Attributes:
        index: of the text among those that were to be encoded.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a completion: the tokenizer's own end token, and those that the policy's folder adds to it."""
    return (tokenizer.eos_token_id, *getattr(tokenizer, "further_end_tokens", ()))


def set_end_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """What :func:`end_tokens` gives from now on; the tokenizer's own end token is among them in any case."""
    tokenizer.further_end_tokens = tuple(token for token in ids if token != tokenizer.eos_token_id)


def set_has_encoder(tokenizer: PreTrainedTokenizerBase, has_encoder: bool) -> None:
    """Say whether the policy of this tokenizer is an encoder-decoder; see :func:`has_encoder`."""
    tokenizer.has_encoder = has_encoder


def has_encoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the policy is an encoder-decoder: its prompts are whole texts, which it does not go on from."""
    return bool(getattr(tokenizer, "has_encoder", False))


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, continued: bool = False
) -> list[list[int]]:
    """Token ids of each text, after the tokens that the tokenizer puts before every text (BOS).

    For an encoder, the tokens that the tokenizer puts after a text (EOS) follow too.

    Args:
        tokenizer: of the policy.
        texts: prompts.
        continued: the texts go on from others, so nothing is put before them.

    Raises:
        UnreadableText: a text is empty, or holds a token that the vocabulary lacks.
    """
    if not texts:
        return []
    with reading("the policy's tokenizer cannot encode a text"):  # lone surrogates, panics of the library
        _check_known(tokenizer, texts)
        encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for index, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        if not ids:
            raise UnreadableText(f"prompt {_shorten(text)!r} is empty: expected at least one token", index)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise UnreadableText(f"{_shorten(text)!r}: holds a token that is not in the policy's vocabulary", index)
    if continued:
        return encoded
    before, after = _around(tokenizer, texts[0])
    encoded = [ids if ids[: len(before)] == before else before + ids for ids in encoded]
    if not has_encoder(tokenizer):  # a decoder is to go on from the text
        return encoded
    return [ids if not after or ids[-len(after) :] == after else ids + after for ids in encoded]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[dict[str, str]]], *, tried: bool = False
) -> list[list[int]]:
    """Token ids of chats as the policy's chat template renders them, up to where the assistant's answer begins.

    The template writes all special tokens itself, BOS included.

    Args:
        tokenizer: of the policy.
        chats: any number.
        tried: the template is known to render these chats within bounds, so that no process is needed to try it.

    Raises:
        UnreadableText: there is no chat template, it fails, renders nothing, or does not end.
    """
    if not tried:
        _check_bounds(tokenizer, chats, add_generation_prompt=True)
    encoded: list[list[int]] = []
    for index, chat in enumerate(chats):
        if tokenizer.chat_template is None:
            raise UnreadableText("is a chat, but the policy has no chat template: give prompts as text", index)
        try:
            found: Any = tokenizer.apply_chat_template(
                [dict(message) for message in chat], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template may raise anything
            raise UnreadableText(f"the policy's chat template fails: {summary(error)}", index) from error
        if not found:
            raise UnreadableText("the policy's chat template renders nothing", index)
        encoded.append(list(found))
    return encoded


def _check_bounds(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[dict[str, str]]], add_generation_prompt: bool
) -> None:
    found = first_unbounded(tokenizer, chats, add_generation_prompt=add_generation_prompt)
    if found is not None:
        raise UnreadableText(f"the policy's chat template {found[1]}", found[0])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one prompt, as :func:`encode_texts`."""
    return encode_texts(tokenizer, [text])[0]


def cut_left(tokenizer: PreTrainedTokenizerBase, ids: list[int], most: int) -> list[int]:
    """The last ``most`` tokens of a prompt; where it begins with what begins every text (BOS), that stays among them.

    Args:
        tokenizer: of the policy.
        ids: of a prompt, of a text or as a chat template rendered it.
        most: at least one.
    """
    if len(ids) <= most:
        return ids
    before = tokenizer("")["input_ids"] or [tokenizer.bos_token_id]
    kept = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, before, strict=False))]
    kept = kept if len(kept) < most else []
    return kept + ids[len(ids) - most + len(kept) :]


def end_of_answer(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[dict[str, str]], answer: str, *, tried: bool = False
) -> int:
    """The token with which the policy's chat template ends an assistant's message; the tokenizer's own where none does.

    Raises:
        UnreadableText: the template fails, or does not end.
    """
    (prompt,) = encode_chats(tokenizer, [chat], tried=tried)
    answered = [*map(dict, chat), {"role": "assistant", "content": answer}]
    if not tried:
        _check_bounds(tokenizer, [answered], add_generation_prompt=False)
    try:
        whole: Any = tokenizer.apply_chat_template(answered, tokenize=True, return_dict=False)
    except Exception as error:  # a template may raise anything
        raise UnreadableText(f"the policy's chat template fails on an answer: {summary(error)}", 0) from error
    ends = end_tokens(tokenizer)
    return next((token for token in whole[len(prompt) :] if token in ends), tokenizer.eos_token_id)


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, without keeping the tokens.

    Where the tokenizer is word-level and splits at blanks, a text has the tokens of its words, so each distinct word is
    encoded once: a million texts of a small vocabulary take seconds, not minutes.

    Raises:
        UnreadableText: as :func:`encode_texts`.
    """
    found: list[int] = []
    by_words = _splits_at_blanks(tokenizer) and not tokenizer("")["input_ids"]  # where nothing is put before a text
    count = _count_by_words(tokenizer) if by_words else partial(_counts, tokenizer)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        try:
            found += count(texts[start : start + TEXTS_AT_ONCE])
        except UnreadableText as error:
            raise UnreadableText(str(error), start + error.index) from error
    return found


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
        return counts if all(counts) else _counts(tokenizer, texts)

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
    """Text of a completion: everything before the first end token.

    Any other special token, pads included, stays visible: the checker sees that the policy wrote it, and completions
    that differ in tokens do not become one text. Only without an end token are pads at the end taken for padding.
    """
    ends = end_tokens(tokenizer)
    kept = list(itertools.takewhile(lambda token: token not in ends, ids))
    while kept and len(kept) == len(ids) and ids[len(kept) - 1] == tokenizer.pad_token_id:
        ids = ids[:-1]
        kept.pop()
    return text_of_tokens(tokenizer)(kept)


def text_of_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """What turns tokens of a completion into its text, special tokens visible, as :func:`decode_completion`."""

    def text_of(ids: Sequence[int]) -> str:
        with reading("the policy's tokenizer cannot decode a completion"):
            return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    return text_of


def single_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int | str], what: str) -> tuple[int, ...]:
    """The ids of tokens that are given as ids, as the vocabulary names them, or as texts that are one token.

    Args:
        tokenizer: of the policy.
        tokens: of each kind any number; a text that is a token's name in the vocabulary means that token.
        what: they are, for messages.

    Raises:
        UserError: an id that the vocabulary lacks, or a text that is none of its tokens.
    """
    vocabulary = tokenizer.get_vocab() if tokens else {}
    found = []
    for token in tokens:
        if isinstance(token, int):
            if not 0 <= token < len(tokenizer):
                raise UserError(f"{what}={token}: the policy's vocabulary has ids 0 to {len(tokenizer) - 1}")
            found.append(token)
        elif token in vocabulary:
            found.append(vocabulary[token])
        else:
            with reading(f"{what}={one_line(repr(token), 60)}: the policy's tokenizer cannot encode it"):
                ids = tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                count = "no token" if not ids or tokenizer.unk_token_id in ids else f"{len(ids)} tokens"
                raise UserError(
                    f"{what}={one_line(repr(token), 60)}: is {count} of the policy's vocabulary: expected one, as id, "
                    f"as the vocabulary names it, or as text"
                )
            found += ids
    return tuple(dict.fromkeys(found))


def _around(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and after it."""
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    starts = range(len(whole) - len(alone) + 1)
    start = next((i for i in starts if whole[i : i + len(alone)] == alone), None)
    return ([], []) if start is None else (whole[:start], whole[start + len(alone) :])


def _check_known(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Name the first word that a word-level vocabulary without an unknown token lacks; others know every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel) or tokenizer.unk_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    for index, text in enumerate(texts):
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            if word not in vocabulary:
                raise UnreadableText(
                    f"{_shorten(text)!r}: the policy's vocabulary has no token {_shorten(word)!r}", index
                )


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
