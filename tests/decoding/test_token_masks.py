"""Banned tokens and min_new_tokens: beams and samples of the masked policy, against brute force in float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from decoding.engines import ENGINES, plain_engine
from decoding.test_sampling import chi_square
from decoding.tiny_models import bias_token, tiny_model
from reference.beam_oracle import all_sequences, beam_search, masked, next_logprobs

from bgrpo.decoding import DecodeEngine, DecodeSettings, fast_layers

EOS = 2
PROMPT = [1, 0, 3]
MASKS: list[dict[str, Any]] = [
    {"banned_tokens": (4, 0), "min_new_tokens": 0},
    {"banned_tokens": (), "min_new_tokens": 3},
    {"banned_tokens": (5,), "min_new_tokens": 2},
]


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
@pytest.mark.parametrize("mask", MASKS)
def test_beams_are_those_of_the_masked_policy(engine: str, mask: dict[str, Any]) -> None:
    make = plain_engine if engine == "plain" else ENGINES[engine]
    model = bias_token(tiny_model(vocabulary=7, seed=2), EOS, 2.0)
    settings = DecodeSettings("beam", 9, 5, EOS, 0, **mask)
    (group,) = make(model).decode([PROMPT], settings)
    after = masked(next_logprobs(model, PROMPT), mask["banned_tokens"], [EOS], mask["min_new_tokens"])
    expected = beam_search(after, 9, 5, EOS)
    assert expected.margin > 1e-4
    found = {tuple(completion.tokens): completion.logprob for completion in group.completions}
    assert found.keys() == expected.scores.keys()
    for tokens, score in found.items():
        assert score == pytest.approx(expected.scores[tokens], abs=1e-4)
    assert any(completion.finished for completion in group.completions)


def test_fewer_beams_than_asked_for_where_the_mask_leaves_fewer() -> None:
    settings = DecodeSettings("beam", 50, 2, EOS, 0, banned_tokens=(0, 1, 4), min_new_tokens=1)
    (group,) = DecodeEngine(tiny_model(vocabulary=5)).decode([PROMPT], settings)
    assert sorted(completion.tokens for completion in group.completions) == [[3, 2], [3, 3]]


@pytest.mark.parametrize("mask", MASKS)
def test_samples_are_those_of_the_masked_policy(mask: dict[str, Any]) -> None:
    model = bias_token(tiny_model(vocabulary=6, seed=11), EOS, 1.0)
    settings = DecodeSettings("sample", 40, 4, EOS, 0, 1.2, **mask)
    groups = DecodeEngine(model).decode([PROMPT] * 100, settings, seeds=range(100))
    after = masked(next_logprobs(model, PROMPT), mask["banned_tokens"], [EOS], mask["min_new_tokens"])
    exact = all_sequences(after, 6, 4, EOS, 1.2)
    completions = [completion for group in groups for completion in group.completions]
    statistic, limit = chi_square(Counter(tuple(completion.tokens) for completion in completions), exact)
    assert statistic < limit
    for completion in completions[:100]:
        assert completion.logprob == pytest.approx(exact[tuple(completion.tokens)], abs=1e-4)


def test_what_is_drawn_without_replacement_is_of_the_masked_policy_and_ends_with_stop_texts() -> None:
    """The first of each group is a plain sample, and none of a group is another one's beginning."""
    model = bias_token(tiny_model(vocabulary=6, seed=11), EOS, 1.0)
    settings = DecodeSettings(
        "stochastic_beam", 2, 4, EOS, 0, 1.2, banned_tokens=(5,), min_new_tokens=1, stop=("13", "30")
    )
    groups = DecodeEngine(model).decode([PROMPT] * 3000, settings, range(3000), lambda ids: "".join(map(str, ids)))
    after = masked(next_logprobs(model, PROMPT), (5,), [EOS], 1)

    def ended(tokens: tuple[int, ...]) -> bool:
        text = "".join(map(str, tokens))
        return tokens[-1] == EOS or "13" in text or "30" in text

    exact = all_sequences(after, 6, 4, ended, 1.2)
    firsts = Counter(tuple(group.completions[0].tokens) for group in groups)
    assert firsts.keys() <= exact.keys()
    statistic, limit = chi_square(firsts, exact)
    assert statistic < limit
    for first, second in (group.completions for group in groups[:200]):
        assert first.tokens != second.tokens and first.finished == ended(tuple(first.tokens))
        assert second.logprob == pytest.approx(exact[tuple(second.tokens)], abs=1e-4)


@pytest.mark.parametrize("mode", ["beam", "sample", "stochastic_beam"])
def test_the_blocks_of_a_large_vocabulary_are_masked_alike(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bias_token(tiny_model(vocabulary=2600, seed=1), EOS, 5.0)
    free = DecodeEngine(model).decode([PROMPT], DecodeSettings(mode, 6, 4, EOS, 0), [5])[0]
    banned = tuple({token for completion in free.completions for token in completion.tokens} - {EOS})
    settings = DecodeSettings(mode, 6, 4, EOS, 0, banned_tokens=banned, min_new_tokens=1)
    whole = DecodeEngine(model).decode([PROMPT], settings, [5])[0]
    monkeypatch.setattr(fast_layers, "LOGITS_AT_ONCE", 2048)
    blocks = DecodeEngine(model).decode([PROMPT], settings, [5])[0]
    assert [each.tokens for each in blocks.completions] == [each.tokens for each in whole.completions]
    assert not {token for each in whole.completions for token in each.tokens}.intersection(banned)
    for a, b in zip(blocks.completions, whole.completions, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_several_end_tokens_wait_alike() -> None:
    model, ends = tiny_model("gpt2", 7, seed=1), (2, 4)
    settings = DecodeSettings("sample", 200, 6, ends, 0, min_new_tokens=2)
    (group,) = DecodeEngine(model).decode([[3, 1]], settings, [5])
    assert {completion.tokens[-1] for completion in group.completions if completion.finished} == set(ends)
    assert not any(set(completion.tokens[:2]).intersection(ends) for completion in group.completions)
