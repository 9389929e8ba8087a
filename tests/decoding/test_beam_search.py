"""Beam search against a float64 brute force, an exhaustive enumeration, and the library's own search."""

from __future__ import annotations

import pytest
import torch
from decoding.engines import ENGINES
from decoding.rounded_models import rounded_to_bf16
from decoding.tiny_models import OPTIONS, bias_token, ragged_prompts, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.beam_oracle import BeamResult, all_sequences, beam_search, next_logprobs
from transformers import PreTrainedModel

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.groups import Group

EOS = 2


def beams(completions: int, max_new_tokens: int) -> DecodeSettings:
    return DecodeSettings("beam", completions, max_new_tokens, eos_token_id=EOS, pad_token_id=0)


def scores_of(group: Group) -> dict[tuple[int, ...], float]:
    scores = {tuple(completion.tokens): completion.logprob for completion in group.completions}
    assert len(scores) == len(group.completions), "the same completion twice"
    return scores


def brute_force(model: PreTrainedModel, prompt: list[int], width: int, steps: int) -> dict[tuple[int, ...], float]:
    result = beam_search(next_logprobs(model, prompt), width, steps, EOS)
    assert result.margin > 2e-5, "too close a call for float32: choose another model"
    return result.scores


def assert_same(group: Group, expected: dict[tuple[int, ...], float], tolerance: float = 1e-4) -> None:
    found = scores_of(group)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=tolerance)
    logprobs = [completion.logprob for completion in group.completions]
    assert logprobs == sorted(logprobs, reverse=True)
    for completion in group.completions:
        assert completion.finished == (completion.tokens[-1] == EOS)
        assert EOS not in completion.tokens[:-1]
        assert len(completion.logprobs) == len(completion.tokens)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
@pytest.mark.parametrize(("vocabulary", "width", "steps"), [(7, 5, 6), (7, 7, 5), (7, 12, 5), (31, 45, 3)])
@pytest.mark.parametrize("engine", ENGINES)
def test_equals_brute_force(engine: str, kind: str, vocabulary: int, width: int, steps: int) -> None:
    model = tiny_model(kind, vocabulary, seed=1)
    prompts = ragged_prompts(4, vocabulary, seed=0)
    groups = ENGINES[engine](model).decode(prompts, beams(width, steps))
    for prompt, group in zip(prompts, groups, strict=True):
        assert_same(group, brute_force(model, prompt, width, steps))


@pytest.mark.parametrize("engine", ENGINES)
def test_long_search_with_early_ends_and_nodes_used_again(engine: str) -> None:
    model = tiny_model(vocabulary=6, seed=5)
    prompts = ragged_prompts(6, 6, seed=3)
    expected = [brute_force(model, prompt, 5, 36) for prompt in prompts]
    lengths = [[len(tokens) for tokens in scores] for scores in expected]
    assert min(map(max, lengths)) <= 24 < max(map(max, lengths)), "some searches must end early, some go on"
    fed = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    groups = ENGINES[engine](model).decode(prompts, beams(5, 36))
    for group, scores in zip(groups, expected, strict=True):
        assert_same(group, scores)
    assert fed[0] == sum(len(prompt) - 1 for prompt in prompts), "each prompt is read once, not once per beam"
    assert max(fed[1:]) <= 32, "30 beams, or the next multiple of 16"
    if engine != "replayed":
        assert fed[1] in (6, 16) and fed[-1] <= 16, "one row per prompt at first; beams that have ended are not fed"


@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(3, 9),
    width=st.integers(1, 12),
    steps=st.integers(1, 11),
    eos_bias=st.sampled_from([-2.0, 0.0, 2.0, 5.0]),
    max_rows=st.integers(1, 40),
    engine=st.sampled_from(sorted(ENGINES)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_brute_force_for_any_setting(
    seed: int, vocabulary: int, width: int, steps: int, eos_bias: float, max_rows: int, engine: str
) -> None:
    model = bias_token(tiny_model(vocabulary=vocabulary, seed=seed), EOS, eos_bias)
    prompts = ragged_prompts(3, vocabulary, seed)
    expected: list[BeamResult] = []
    for prompt in prompts:
        expected.append(beam_search(next_logprobs(model, prompt), width, steps, EOS))
        assume(expected[-1].margin > 1e-4)
    groups = ENGINES[engine](model, max_rows=max_rows).decode(prompts, beams(width, steps))
    for group, result in zip(groups, expected, strict=True):
        assert_same(group, result.scores)


def test_finds_every_sequence_when_there_are_fewer_than_beams() -> None:
    model = tiny_model(vocabulary=3, seed=2)
    sequences = all_sequences(next_logprobs(model, [0, 1, 1]), 3, 4, EOS)
    assert len(sequences) == 1 + 2 + 4 + 8 * 3
    assert_same(DecodeEngine(model).decode([[0, 1, 1]], beams(100, 4))[0], sequences)


def test_is_exhaustive_when_every_prefix_fits() -> None:
    model = tiny_model(vocabulary=3, seed=2)
    sequences = all_sequences(next_logprobs(model, [0, 1, 1]), 3, 4, EOS)
    best = sorted(sequences, key=lambda tokens: -sequences[tokens])[:15]  # 7 have ended after 3 tokens, 8 go on
    group = DecodeEngine(model).decode([[0, 1, 1]], beams(15, 4))[0]
    assert_same(group, {tokens: sequences[tokens] for tokens in best})


def test_one_token_has_as_many_hypotheses_as_the_vocabulary() -> None:
    groups = DecodeEngine(tiny_model(vocabulary=7)).decode([[3], [4, 5]], beams(12, 1))
    for group in groups:
        assert sorted(completion.tokens for completion in group.completions) == [[token] for token in range(7)]
        assert sum(torch.tensor([completion.logprob for completion in group.completions]).exp()) == pytest.approx(1)


def test_width_one_is_greedy() -> None:
    model = tiny_model(vocabulary=9, seed=4)
    prompts = ragged_prompts(5, 9, seed=8)
    for prompt, group in zip(prompts, DecodeEngine(model).decode(prompts, beams(1, 12)), strict=True):
        after = next_logprobs(model, prompt)
        tokens: tuple[int, ...] = ()
        while len(tokens) < 12 and EOS not in tokens:
            tokens = (*tokens, max(range(9), key=after(tokens).__getitem__))
        assert [tuple(completion.tokens) for completion in group.completions] == [tokens]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_agrees_with_generate_where_nothing_ends(kind: str) -> None:
    """Without an end token both searches keep the K best prefixes; with one, the library's rules differ."""
    model = bias_token(tiny_model(kind, vocabulary=11, seed=6), EOS, -1e4)
    model.generation_config.eos_token_id = None
    for prompt in ragged_prompts(3, 11, seed=1):
        found = scores_of(DecodeEngine(model).decode([prompt], beams(6, 10))[0])
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=6,
            num_return_sequences=6,
            max_new_tokens=10,
            length_penalty=0.0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = [tuple(row[len(prompt) :]) for row in theirs.sequences.tolist()]
        expected = dict(zip(sequences, theirs.sequences_scores.tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_searches_its_own_distribution(engine: str, kind: str) -> None:
    """Against a brute force in float64 with the same values rounded to bf16, and nothing else."""
    model = tiny_model(kind, vocabulary=9, seed=7)
    rounded = rounded_to_bf16(model)
    for prompt in ragged_prompts(4, 9, seed=2):
        group = ENGINES[engine](model, precision="bf16").decode([prompt], beams(6, 6))[0]
        after = next_logprobs(rounded, prompt)
        for tokens, score in scores_of(group).items():
            exact = sum(after(tokens[:place])[token] for place, token in enumerate(tokens))
            assert score == pytest.approx(exact, abs=0.01 * len(tokens))  # a value at the edge may round either way
        expected = beam_search(after, 6, 6, EOS)
        if expected.margin > 0.1:
            assert scores_of(group).keys() == expected.scores.keys()
    exact_scores = scores_of(DecodeEngine(model).decode([prompt], beams(6, 6))[0])
    assert exact_scores != pytest.approx(scores_of(group), abs=1e-4), "rounding must be noticeable here"


def test_equal_scores_give_the_same_beams_every_time() -> None:
    model = tiny_model(vocabulary=8, seed=3)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[4:] = weight[:4]  # every token has a twin
    prompts = ragged_prompts(4, 8, seed=5)
    first, second = (DecodeEngine(model).decode(prompts, beams(7, 6)) for _ in range(2))
    assert first == second
    assert all(len(scores_of(group)) == 7 for group in first)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("width", [1, 4, 9])
def test_of_several_end_tokens_the_most_probable_one_ends_a_text(engine: str, width: int) -> None:
    """Against a search written out in the open, in which a text ends once."""
    model, ends, steps = tiny_model("gpt2", 7, seed=1), (2, 4, 5), 5
    for prompt in ragged_prompts(4, 7, seed=0):
        after = next_logprobs(model, prompt)
        beams_now: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for _ in range(steps):
            candidates = [beam for beam in beams_now if beam[1] and beam[1][-1] in ends]
            for score, tokens in beams_now:
                if not (tokens and tokens[-1] in ends):
                    logps = after(tokens)
                    best_end = max(ends, key=lambda end: logps[end])
                    kept = [token for token in range(7) if token not in ends or token == best_end]
                    candidates += [(score + logps[token], (*tokens, token)) for token in kept]
            beams_now = sorted(candidates, reverse=True)[:width]
        settings = DecodeSettings("beam", width, steps, eos_token_id=ends, pad_token_id=0)
        group = ENGINES[engine](model).decode([prompt], settings)[0]
        assert scores_of(group) == pytest.approx({tokens: score for score, tokens in beams_now}, abs=1e-4)
        for completion in group.completions:
            assert completion.finished == (completion.tokens[-1] in ends)
            assert not set(completion.tokens[:-1]) & set(ends)
