"""top_k, top_p and min_p: against the warpers of transformers, and against enumerated probabilities."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.test_sampling import chi_square
from decoding.tiny_models import bias_token, ragged_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.beam_oracle import NextLogprobs, all_sequences, next_logprobs, tempered
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.truncation import Truncation
from bgrpo.errors import UserError

EOS = 2
PROMPT = [1, 0, 3]


def warped(logits_RV: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """As ``generate`` of transformers does it."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers(torch.zeros(len(logits_RV), 1, dtype=torch.long), logits_RV)


def cut_off(after: NextLogprobs, temperature: float, **truncation: Any) -> NextLogprobs:
    """The truncated, renormalised distribution at each token, by transformers."""

    def of(completion: tuple[int, ...]) -> list[float]:
        logits_1V = torch.tensor([after(completion)], dtype=torch.float64)
        return warped(logits_1V, temperature, **truncation).log_softmax(-1)[0].tolist()

    return of


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    spread=st.floats(0.01, 8),
    vocabulary=st.sampled_from([1, 2, 7, 40, 3000]),
    temperature=st.floats(0.2, 3),
    top_k=st.sampled_from([0, 1, 2, 5, 100, 10**6]),
    top_p=st.floats(1e-6, 1) | st.just(1.0),
    min_p=st.floats(0, 0.99) | st.just(0.0),
)
def test_what_is_kept_is_what_transformers_keeps(
    seed: int, spread: float, vocabulary: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits_RV = torch.randn(3, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread
    cut_RV = Truncation(top_k, top_p, min_p).cut(logits_RV / temperature)
    expected_RV = warped(logits_RV, temperature, top_k, top_p, min_p)
    assert torch.equal(cut_RV == -torch.inf, expected_RV == -torch.inf)
    assert torch.allclose(cut_RV.softmax(-1), expected_RV.softmax(-1), rtol=1e-12)
    for row in range(3):  # of a row alone the same
        assert torch.equal(Truncation(top_k, top_p, min_p).cut(logits_RV[row : row + 1] / temperature)[0], cut_RV[row])


def test_tokens_of_equal_probability_stay_together() -> None:
    logits_1V = torch.tensor([[0.0, 1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    for truncation in (Truncation(2, 1.0, 0.0), Truncation(0, 0.3, 0.0), Truncation(0, 1.0, 0.999)):
        assert (truncation.cut(logits_1V) > -torch.inf).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(
    ("truncation", "temperature"),
    [
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, 1.0),
        ({"top_k": 0, "top_p": 0.7, "min_p": 0.0}, 1.4),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.1}, 0.8),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.1}, 1.2),
    ],
)
def test_samples_have_the_exact_truncated_probabilities(truncation: dict[str, Any], temperature: float) -> None:
    model = bias_token(tiny_model(vocabulary=4, seed=11), EOS, 1.0)
    options = DecodeSettings("sample", 40, 3, EOS, pad_token_id=0, temperature=temperature, **truncation)
    groups = DecodeEngine(model).decode([PROMPT] * 100, options, seeds=range(100))
    completions = [completion for group in groups for completion in group.completions]
    after = next_logprobs(model, PROMPT)
    whole = all_sequences(after, 4, 3, EOS, temperature)
    drawn_from = cut_off(after, temperature, **truncation)
    part = all_sequences(drawn_from, 4, 3, EOS)
    assert len(part) < len(whole) and sum(map(math.exp, part.values())) == pytest.approx(1)
    counts = Counter(tuple(completion.tokens) for completion in completions)
    assert counts.keys() <= part.keys()
    statistic, limit = chi_square(counts, part)
    assert statistic < limit
    statistic, limit = chi_square(counts, whole)
    assert statistic > limit, "the test must notice that something was cut off"
    for completion in completions[:200]:
        tokens = tuple(completion.tokens)
        assert completion.logprob == pytest.approx(whole[tokens], abs=1e-4), "of the whole distribution"
        assert sum(completion.sampled_logprobs) == pytest.approx(part[tokens], abs=1e-4)
        for place, token in enumerate(tokens):
            assert completion.logprobs[place] == pytest.approx(
                tempered(after(tokens[:place]), temperature)[token], abs=1e-4
            )
            assert completion.sampled_logprobs[place] == pytest.approx(drawn_from(tokens[:place])[token], abs=1e-4)


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
def test_truncated_samples_depend_on_their_own_seed_only(engine: str) -> None:
    make = plain_engine if engine == "plain" else ENGINES[engine]
    model = bias_token(tiny_model(vocabulary=19, seed=5), EOS, 1.5)
    prompts, seeds = ragged_prompts(6, 19, seed=4), [3, 1, 4, 1, 5, 9]
    options = DecodeSettings(
        "sample", 5, 12, EOS, 0, 1.3, top_k=9, top_p=0.85, min_p=0.05, min_new_tokens=2, banned_tokens=(4, 11)
    )
    together = make(model).decode(prompts, options, seeds)
    expected = DecodeEngine(model).decode(prompts, options, seeds)
    reverse = make(model, max_rows=10).decode(prompts[::-1], options, seeds[::-1])[::-1]
    for one, *others in zip(expected, together, reverse, strict=True):
        for other in others:
            for a, b in zip(one.completions, other.completions, strict=True):
                assert a.tokens == b.tokens and a.finished == b.finished
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
                assert a.sampled_logprobs == pytest.approx(b.sampled_logprobs, abs=1e-4)
                assert len(a.sampled_logprobs) == len(a.tokens)
    assert together == make(model).decode(prompts, options, seeds)


def test_what_cuts_nothing_off_changes_nothing() -> None:
    model, prompts = tiny_model(vocabulary=9, seed=3), ragged_prompts(3, 9, seed=1)
    plain = DecodeEngine(model).decode(prompts, DecodeSettings("sample", 4, 8, EOS, 0), [1, 2, 3])
    wide = DecodeEngine(model).decode(prompts, DecodeSettings("sample", 4, 8, EOS, 0, top_k=1000), [1, 2, 3])
    for a, b in zip(plain, wide, strict=True):
        assert [each.tokens for each in a.completions] == [each.tokens for each in b.completions]
        assert all(each.sampled_logprobs == each.logprobs for each in b.completions)
        assert not any(each.sampled_logprobs for each in a.completions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, r"top_p=0\.0: expected a number above 0"),
        ({"top_p": 1.1}, r"top_p=1\.1: expected"),
        ({"top_p": math.nan}, "top_p=nan: expected"),
        ({"min_p": 1.0}, r"min_p=1\.0: expected a number from 0"),
        ({"min_p": -0.1}, r"min_p=-0\.1: expected"),
        ({"top_k": -1}, "top_k=-1: expected 1 or more"),
        ({"min_new_tokens": 9}, "min_new_tokens=9: expected 0 to max_new_tokens=8"),
        ({"banned_tokens": (1, EOS)}, f"token {EOS} ends a completion"),
        ({"stop": ("a", "")}, "stop: holds an empty text"),
        ({"stop": ("\ufffd",)}, "holds half of a character"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeSettings("sample", 2, 8, EOS, 0, **options)


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}])
def test_beams_are_not_cut_off(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(
        UserError, match=f"^{name}={value:g}: cuts off what independent samples are drawn from; beams are"
    ):
        DecodeSettings("beam", 2, 8, EOS, 0, **options)


def test_tokens_must_be_of_the_vocabulary_and_some_must_be_left() -> None:
    model = tiny_model(vocabulary=5)
    for banned, least, message in [
        ((7,), 0, "banned_tokens=7: the model's vocabulary has ids 0 to 4"),
        ((0, 1, 3, 4), 1, "banned_tokens are all 5 tokens of the vocabulary but those that end a completion"),
    ]:
        options = DecodeSettings("beam", 2, 8, EOS, 0, banned_tokens=banned, min_new_tokens=least)
        with pytest.raises(UserError, match=message):
            DecodeEngine(model).decode([[1]], options)
