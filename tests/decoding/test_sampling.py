"""Samples against exactly enumerated probabilities, and their independence of everything but the prompt's own seed."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from decoding.engines import ENGINES
from decoding.tiny_models import bias_token, ragged_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference.beam_oracle import all_sequences, next_logprobs, tempered

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.sample import draw_tokens, uniform_streams

EOS = 2
PROMPT = [1, 0, 3]


def samples(completions: int, max_new_tokens: int, temperature: float = 1.0) -> DecodeSettings:
    return DecodeSettings("sample", completions, max_new_tokens, EOS, pad_token_id=0, temperature=temperature)


def chi_square(counts: Counter[tuple[int, ...]], logprobs: dict[tuple[int, ...], float]) -> tuple[float, float]:
    """Pearson's statistic and its 99.9 % quantile (Wilson and Hilferty 1931); rare sequences form one class."""
    total = sum(counts.values())
    expected = {tokens: total * math.exp(logprob) for tokens, logprob in logprobs.items()}
    common = [tokens for tokens, count in expected.items() if count >= 8]
    rare = total - sum(expected[tokens] for tokens in common)
    observed_rare = total - sum(counts[tokens] for tokens in common)
    statistic = sum((counts[tokens] - expected[tokens]) ** 2 / expected[tokens] for tokens in common)
    statistic += (observed_rare - rare) ** 2 / max(rare, 1e-6)  # none can be seen where there are none
    freedom = len(common)
    return statistic, freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("temperature", "wrong"), [(1.0, 1.3), (0.7, 1.0), (1.6, 1.0)])
def test_sequences_have_their_exact_probabilities(temperature: float, wrong: float) -> None:
    model = bias_token(tiny_model(vocabulary=4, seed=11), EOS, 1.0)
    groups = DecodeEngine(model).decode([PROMPT] * 150, samples(40, 3, temperature), seeds=range(150))
    counts = Counter(tuple(completion.tokens) for group in groups for completion in group.completions)
    assert sum(counts.values()) == 6000
    after = next_logprobs(model, PROMPT)
    exact = all_sequences(after, 4, 3, EOS, temperature)
    assert sum(map(math.exp, exact.values())) == pytest.approx(1)
    statistic, limit = chi_square(counts, exact)
    assert statistic < limit
    statistic, limit = chi_square(counts, all_sequences(after, 4, 3, EOS, wrong))
    assert statistic > limit, "the test must notice another temperature"


def test_samples_of_different_seeds_are_independent() -> None:
    """Joint counts of the first tokens of two prompts with neighbouring seeds, and of two samples of one prompt."""
    model = tiny_model(vocabulary=3, seed=1)
    groups = DecodeEngine(model).decode([PROMPT[:2]] * 1000, samples(2, 1), seeds=range(1000))
    firsts = [(group.completions[0].tokens[0], group.completions[1].tokens[0]) for group in groups]
    after = next_logprobs(model, PROMPT[:2])(())
    exact = {(a, b): after[a] + after[b] for a in range(3) for b in range(3)}
    neighbours = Counter((a[0], b[0]) for a, b in itertools.pairwise(firsts))
    for counts in (Counter(firsts), neighbours):
        statistic, limit = chi_square(counts, exact)
        assert statistic < limit


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_logprobs_are_those_of_the_distribution_that_was_sampled(temperature: float) -> None:
    model = tiny_model("llama", vocabulary=11, seed=3)
    prompts = ragged_prompts(4, 11, seed=0)
    groups = DecodeEngine(model).decode(prompts, samples(3, 20, temperature), seeds=[7, 8, 9, 10])
    for prompt, group in zip(prompts, groups, strict=True):
        after = next_logprobs(model, prompt)
        for completion in group.completions:
            exact = [
                tempered(after(tuple(completion.tokens[:i])), temperature)[token]
                for i, token in enumerate(completion.tokens)
            ]
            assert completion.logprobs == pytest.approx(exact, abs=1e-4)
            assert completion.finished == (completion.tokens[-1] == EOS)
            assert EOS not in completion.tokens[:-1]
            assert completion.finished or len(completion.tokens) == 20


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompts_samples_depend_on_its_own_seed_only(engine: str) -> None:
    model = bias_token(tiny_model(vocabulary=9, seed=5), EOS, 1.5)
    prompts, seeds = ragged_prompts(7, 9, seed=4), [3, 1, 4, 1, 5, 9, 2]
    together = ENGINES[engine](model).decode(prompts, samples(6, 30), seeds)
    lengths = [len(completion.tokens) for group in together for completion in group.completions]
    assert min(lengths) == 1 and max(lengths) > 16, "early and late ends must be mixed"
    reverse = ENGINES[engine](model, max_rows=20).decode(prompts[::-1], samples(6, 30), seeds[::-1])
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = ENGINES[engine](model).decode([prompt], samples(6, 30), [seed])[0]
        for other in (alone, reverse[len(prompts) - 1 - index]):
            for a, b in zip(together[index].completions, other.completions, strict=True):
                assert a.tokens == b.tokens
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert together == ENGINES[engine](model).decode(prompts, samples(6, 30), seeds)
    assert together != ENGINES[engine](model).decode(prompts, samples(6, 30), [seed + 1 for seed in seeds])


def test_samples_keep_draw_order() -> None:
    """Each sample is the one that its own row of the uniform stream draws, however early others end."""
    model = bias_token(tiny_model(vocabulary=9, seed=5), EOS, 1.0)
    group = DecodeEngine(model).decode([PROMPT], samples(8, 12), seeds=[17])[0]
    uniforms = uniform_streams([17], 8, 12)[0].numpy()
    after = next_logprobs(model, PROMPT)
    for row, completion in zip(uniforms, group.completions, strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 12 and EOS not in tokens:
            cumulative = np.cumsum(np.exp(after(tokens)))
            tokens = (*tokens, int(np.searchsorted(cumulative, row[len(tokens)] * cumulative[-1], side="right")))
        assert tuple(completion.tokens) == tokens


def test_streams_use_the_whole_seed() -> None:
    seeds = [5, 5 + 2**32, 5 + 2**62, 6]
    streams = uniform_streams(seeds, 3, 4)
    assert len({tuple(stream.flatten().tolist()) for stream in streams}) == len(seeds)
    assert torch.equal(uniform_streams(seeds[::-1], 3, 4).flip(0), streams)
    assert streams.min() >= 0 and streams.max() < 1


@settings(deadline=None, derandomize=True)
@given(
    logits=arrays(np.float32, (2, 5), elements=st.floats(-30, 30, width=32)),
    impossible=st.sets(st.integers(0, 4), max_size=4),
    uniforms=arrays(np.float64, 2, elements=st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True)),
    temperature=st.floats(0.1, 5),
)
def test_only_possible_tokens_are_drawn_where_the_cumulative_passes(
    logits: np.ndarray, impossible: set[int], uniforms: np.ndarray, temperature: float
) -> None:
    logits[..., list(impossible)] = -np.inf
    drawn, _ = draw_tokens(torch.from_numpy(logits), torch.from_numpy(uniforms), temperature)
    for row in range(2):
        token = int(drawn[row])
        tempered = logits[row].astype(np.float64) / temperature
        weights = np.exp(tempered - tempered.max())
        weights /= weights.sum()
        assert token not in impossible or uniforms[row] > 1 - 1e-12
        assert weights[:token].sum() <= uniforms[row] + 1e-12
        assert weights[: token + 1].sum() >= uniforms[row] - 1e-12


@settings(deadline=None)
@given(
    vocabulary=st.integers(1025, 3000),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    temperature=st.sampled_from([1.0, 0.01, 7.0]),
    forbidden=st.sampled_from([0.0, 0.3, 0.999]),
)
def test_a_large_vocabulary_is_passed_block_by_block_to_the_same_tokens(
    vocabulary: int, seed: int, spread: float, temperature: float, forbidden: float
) -> None:
    """Whole blocks may be impossible; the ends of [0, 1) too, in fp32 logits as a model gives them."""
    draw = np.random.default_rng(seed)
    logits = (draw.standard_normal((6, vocabulary)) * spread).astype(np.float32)
    logits[draw.random((6, vocabulary)) < forbidden] = -np.inf
    logits[:, draw.integers(vocabulary)] = 0.0
    uniforms = np.array([0.0, 1 - 2.0**-53, *draw.random(4)])
    drawn, logps = draw_tokens(torch.from_numpy(logits), torch.from_numpy(uniforms), temperature)
    tempered = logits.astype(np.float64) / temperature
    exact = tempered - tempered.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    for row, token in enumerate(drawn.tolist()):
        assert logps[row].item() == pytest.approx(exact[row, token], rel=1e-6, abs=2e-6)
        assert exact[row, token] > -np.inf
        weights = np.exp(exact[row])
        assert weights[:token].sum() <= uniforms[row] + 1e-6 and weights[: token + 1].sum() >= uniforms[row] - 1e-6


def test_logits_of_a_large_vocabulary_that_are_not_numbers_give_no_numbers() -> None:
    for bad in (math.nan, math.inf):
        logits = torch.zeros(2, 1500)
        logits[1, 700] = bad
        drawn, logps = draw_tokens(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), 1.0)
        assert int(drawn.min()) >= 0 and int(drawn.max()) < 1500
        assert logps[0].item() == pytest.approx(-math.log(1500)) and logps[1].isnan()


def test_any_of_several_end_tokens_ends_a_sample() -> None:
    model, ends = tiny_model("gpt2", 7, seed=1), (2, 4)
    one, several = (
        DecodeEngine(model).decode([[3, 1]], DecodeSettings("sample", 200, 8, end, pad_token_id=0), [5])[0].completions
        for end in (2, ends)
    )
    assert {completion.tokens[-1] for completion in several if completion.finished} == set(ends)
    for free, cut in zip(one, several, strict=True):  # the same draws, up to the first end
        first = next((place for place, token in enumerate(free.tokens) if token in ends), len(free.tokens) - 1)
        assert cut.tokens == free.tokens[: first + 1]
        assert cut.logprobs == pytest.approx(free.logprobs[: first + 1], abs=1e-5)
