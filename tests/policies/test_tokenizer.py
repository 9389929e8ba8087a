"""The polynomial tokenizer: exact vocabulary, glued tokens, nothing lost in silence."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bgrpo.errors import UserError
from bgrpo.policies import text as text_module
from bgrpo.policies.text import decode_completion, encode_prompt, encode_texts, token_counts
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer, tokenizer_from_tokens

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "polynomial"
TOKENIZER = build_tokenizer()
VOCABULARY = ["□", "⁇", *"+*^&PN0123456789ab", *(f"a{i}" for i in range(21)), *(f"b{i}" for i in range(8))]


def test_vocabulary_is_the_notation_in_a_fixed_order() -> None:
    assert TOKENIZER.convert_ids_to_tokens(list(range(len(TOKENIZER)))) == VOCABULARY
    assert len(build_tokenizer(0, 0)) == 20
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token) == ("□", "⁇")
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id


@given(st.lists(st.sampled_from(VOCABULARY[1:]), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_blank_separated_tokens_map_one_to_one(tokens: list[str]) -> None:
    assert encode_prompt(TOKENIZER, " ".join(tokens)) == [VOCABULARY.index(token) for token in tokens]


@given(st.lists(st.sampled_from(VOCABULARY[2:]), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_decoding_inverts_encoding(tokens: list[str]) -> None:
    text = " ".join(tokens)
    ids = encode_prompt(TOKENIZER, text)
    assert decode_completion(TOKENIZER, [*ids, TOKENIZER.eos_token_id]) == text


def test_glued_tokens_split_and_question_mark_is_the_separator() -> None:
    assert encode_prompt(TOKENIZER, "*P12^a2P3+b1 ?") == encode_prompt(TOKENIZER, "* P 1 2 ^ a2 P 3 + b1 ⁇")
    assert encode_prompt(TOKENIZER, "a ⁇")[-1] == TOKENIZER.eos_token_id
    assert encode_prompt(TOKENIZER, "a?")[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("text", "named"), [("+ q a", "'q'"), ("+ a21 a", "'a21'"), ("a - P 1", "'-'"), ("a ü", "'ü'"), ("b8", "'b8'")]
)
def test_unknown_token_is_named(text: str, named: str) -> None:
    with pytest.raises(UserError, match=f"no token {named}"):
        encode_prompt(TOKENIZER, text)


def test_indexed_variable_is_never_split_into_a_shorter_one() -> None:
    with pytest.raises(UserError, match="'a12'"):
        encode_prompt(build_tokenizer(inner_variables=2), "a12")


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="empty"):
        encode_prompt(TOKENIZER, text)


def test_completion_ends_at_the_first_end_token_and_keeps_a_pad_inside() -> None:
    ids = encode_prompt(TOKENIZER, "+ P 3")
    eos, pad = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
    assert decode_completion(TOKENIZER, [*ids, eos, *ids]) == "+ P 3"
    assert decode_completion(TOKENIZER, [*ids, pad, pad]) == "+ P 3"
    assert decode_completion(TOKENIZER, [ids[0], pad, *ids[1:], eos]) == "+ □ P 3"
    assert decode_completion(TOKENIZER, [eos]) == ""


def test_saved_tokenizer_is_read_back_by_the_ecosystem(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id) == (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id)
    assert encode_prompt(loaded, "*a2+b1?") == encode_prompt(TOKENIZER, "* a2 + b1 ⁇")
    with pytest.raises(UserError, match="'q'"):
        encode_prompt(loaded, "q")


def test_vocabulary_of_tokens_must_be_sound() -> None:
    assert len(tokenizer_from_tokens(["□", "⁇", "a"])) == 3
    for tokens in (["□", "a"], ["⁇", "a"], ["□", "⁇", "a", "a"]):
        with pytest.raises(UserError, match="vocabulary"):
            tokenizer_from_tokens(tokens)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """No vocabulary of words: every byte is a token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, but each text gets a start token."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("□ $A", special_tokens=[("□", 0)])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer(), starting_tokenizer()])
@given(
    texts=st.lists(
        st.lists(
            st.sampled_from([*VOCABULARY, "?", "aP", "*P12", "q", "é", "", "\t", "\x1c", "\u3000", "\n"]), max_size=8
        ).map(" ".join),
        max_size=12,
    )
)
@settings(max_examples=100, deadline=None)
def test_counted_tokens_are_those_of_encoding_every_text(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """The same numbers of tokens, or the same refusal, though words are encoded once."""
    with patch.object(text_module, "TEXTS_AT_ONCE", 3):
        try:
            lengths = [
                len(ids)
                for start in range(0, len(texts), 3)
                for ids in encode_texts(tokenizer, texts[start : start + 3])
            ]
        except UserError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                token_counts(tokenizer, texts)
        else:
            assert token_counts(tokenizer, texts) == lengths


def test_texts_of_a_small_vocabulary_are_not_encoded_one_by_one() -> None:
    encoded: list[int] = []

    def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
        encoded.append(len(texts))
        return encode_texts(tokenizer, texts)

    texts = ["+ a P 1"] * 20_000 + ["+ a P 1 2"]
    with patch.object(text_module, "encode_texts", encode):
        assert token_counts(TOKENIZER, texts) == [4] * 20_000 + [5]
    assert sum(encoded) < 50


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/polynomial is absent")
def test_every_published_line_is_known() -> None:
    for path in sorted(SHARED.glob("*.txt")):
        lines = path.read_text("utf-8").split("\n")[:50]
        texts = [line for line in lines if line.strip()]
        for text, ids in zip(texts, encode_texts(TOKENIZER, texts), strict=True):
            assert len(ids) == len(text.split())
