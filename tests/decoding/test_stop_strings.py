"""Stop texts: where they end completions, against decoding every beginning, and against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.tiny_models import bias_token, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.beam_oracle import all_sequences, beam_search, masked, next_logprobs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.stop_strings import StopStrings
from bgrpo.errors import UserError
from bgrpo.policies.text import text_of_tokens
from bgrpo.scoring.readable_groups import decode_readable
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


def byte_tokenizer(*merged: str) -> PreTrainedTokenizerFast:
    """All bytes, a few longer tokens, an end token and a pad."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<end>"],
        show_progress=False,
    )
    backend.train_from_iterator([text for text in merged for _ in range(5)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


BYTES = byte_tokenizer("ab\n\n", "ba.\n", "é€", "the end")
WORDS = build_tokenizer(1, 1)
PIECES = [BYTES.get_vocab()[name] for name in BYTES.get_vocab()]
STOPS = ["\n\n", "é", "€", "ba", "b\n", ".", "end", "a\n\nb", "<pad>"]


def first_end(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str], least: int = 0) -> int | None:
    """How many tokens a completion has when it ends: every beginning is decoded, and looked at as a whole."""
    text_of = text_of_tokens(tokenizer)
    spared = len(text_of(tokens[:least])) if least else 0
    for length in range(least + 1, len(tokens) + 1):
        text = text_of(tokens[:length])
        for stop in stops:
            if any(text.startswith(stop, place) and place + len(stop) > spared for place in range(len(text))):
                return length
    return None


def found_end(stop: StopStrings, tokens: Sequence[int]) -> int | None:
    return next((length for length in range(1, len(tokens) + 1) if stop.ends(tokens[:length])), None)


texts = st.lists(st.sampled_from(["a", "b", "\n", ".", "é", "€", "the ", "end", "\n\n", "ab"]), max_size=40)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    parts=texts,
    loose=st.lists(st.sampled_from(PIECES), max_size=4),
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3, unique=True),
    least=st.integers(0, 6),
)
def test_the_end_is_where_the_text_first_holds_a_stop_text(
    parts: list[str], loose: list[int], stops: list[str], least: int
) -> None:
    """Across the borders of tokens, in the bytes of one character, after tokens of no use."""
    one_by_one = [token for part in parts for token in BYTES(part)["input_ids"]]
    for tokens in (loose + one_by_one, BYTES("".join(parts))["input_ids"] + loose):
        stop = StopStrings(stops, text_of_tokens(BYTES), least)
        end = first_end(BYTES, tokens, stops, least)
        assert found_end(stop, tokens) == end
        if end is not None:
            text = text_of_tokens(BYTES)(tokens[:end])
            cut = stop.cut(tokens[:end])
            assert text.startswith(cut) and any(text.startswith(each, len(cut)) for each in stops)
            if not least:
                assert not any(each in cut for each in stops)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(parts=texts, stops=st.lists(st.sampled_from(["\n\n", "ba", "b\n", ".", "end"]), min_size=1, max_size=2))
def test_transformers_stops_at_the_same_token(parts: list[str], stops: list[str]) -> None:
    tokens = BYTES("".join(parts))["input_ids"]
    criteria = StopStringCriteria(BYTES, stops)
    theirs = next(
        (n for n in range(1, len(tokens) + 1) if bool(criteria(torch.tensor([tokens[:n]]), torch.zeros(1, 1))[0])), None
    )
    assert found_end(StopStrings(stops, text_of_tokens(BYTES)), tokens) == theirs


def test_tokens_without_text_do_not_hide_a_stop_text() -> None:
    silent = ["x", "END", *[""] * 30]
    stop = StopStrings(["xEND"], lambda ids: "".join(silent[token] for token in ids))
    assert stop.ends([0, *range(2, 32), 1]) and not stop.ends([1, *range(2, 32), 0])


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
@pytest.mark.parametrize("least", [0, 2])
def test_beams_that_end_with_a_stop_text_keep_their_slots(engine: str, least: int) -> None:
    if engine == "replayed":
        pytest.skip("steps that are recorded do not look at text: the engine takes the other search")
    make = plain_engine if engine == "plain" else ENGINES[engine]
    model, prompt, eos = tiny_model(vocabulary=12, seed=4), [3, 9, 8], WORDS.eos_token_id
    (free,) = DecodeEngine(model).decode([prompt], DecodeSettings("beam", 8, 5, eos, 0))
    words = WORDS.convert_ids_to_tokens(next(each.tokens for each in free.completions if not each.finished))
    stops = (f"{words[2]} {words[3]}", f" {words[4]} nothing")
    options = DecodeSettings("beam", 8, 5, eos, 0, stop=stops, min_new_tokens=least)
    (group,) = decode_readable(make(model), WORDS, [prompt], options)
    after = masked(next_logprobs(model, prompt), (), [eos], least)
    expected = beam_search(
        after, 8, 5, lambda tokens: tokens[-1] == eos or first_end(WORDS, tokens, stops, least) is not None
    )
    assert expected.margin > 1e-4
    assert {tuple(each.tokens): each.logprob for each in group.completions} == pytest.approx(expected.scores, abs=1e-4)
    by_text = 0
    for completion in group.completions:
        end = first_end(WORDS, completion.tokens, stops, least)
        assert completion.finished == (completion.tokens[-1] == eos or end is not None)
        assert end in (None, len(completion.tokens))
        by_text += end is not None
    assert by_text and not all(completion.finished for completion in group.completions)


def test_samples_end_with_stop_texts_as_often_as_they_should() -> None:
    model, prompt, eos = tiny_model(vocabulary=5, seed=4), [3, 1, 4], 1
    names = ["<0>", "<1>", "x", "y", "z"]
    options = DecodeSettings("sample", 500, 4, eos, 0, stop=("xy", "zz"))
    (group,) = DecodeEngine(model).decode([prompt], options, [3], lambda ids: "".join(names[token] for token in ids))

    def ended(tokens: tuple[int, ...]) -> bool:
        text = "".join(names[token] for token in tokens)
        return tokens[-1] == eos or "xy" in text or "zz" in text

    exact = all_sequences(next_logprobs(model, prompt), 5, 4, ended)
    for completion in group.completions:
        assert completion.logprob == pytest.approx(exact[tuple(completion.tokens)], abs=1e-4)
        assert completion.finished == ended(tuple(completion.tokens))
    assert {completion.tokens[-1] for completion in group.completions if completion.finished} == {eos, 3, 4}


def test_the_judge_reads_what_comes_before_the_stop_text() -> None:
    eos, stop = BYTES.eos_token_id, "e"
    prompt = BYTES(stop * 2)["input_ids"]  # what the prompt holds does not count
    model = bias_token(tiny_model(vocabulary=len(BYTES), seed=2), prompt[0], 6.0)
    options = DecodeSettings("sample", 30, 10, eos, 0, stop=(stop,))
    (group,) = decode_readable(DecodeEngine(model), BYTES, [prompt], options, [1])
    ended = [each for each in group.completions if each.finished and each.tokens[-1] != eos]
    assert ended and all(len(each.tokens) == len(each.logprobs) for each in group.completions)
    for completion in group.completions:
        whole = text_of_tokens(BYTES)(completion.tokens)
        assert stop not in completion.text
        assert (stop in whole) == (completion in ended)
        if completion in ended:
            assert completion.text == whole[: whole.index(stop)]


def test_a_decoder_without_text_is_told() -> None:
    with pytest.raises(UserError, match="stop: finding texts needs text_of"):
        DecodeEngine(tiny_model()).decode([[1]], DecodeSettings("beam", 2, 4, 1, 0, stop=("a",)))
