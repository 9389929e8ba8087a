"""Completions drawn without replacement against exactly enumerated probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.test_sampling import chi_square
from decoding.tiny_models import bias_token, ragged_prompts, tiny_model
from reference.beam_oracle import all_sequences, next_logprobs
from scipy import stats

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.stochastic_beam import gumbels, noise_streams
from bgrpo.errors import UserError
from bgrpo.groups import Group

EOS = 2
PROMPT = [1, 0, 3]
Sequences = dict[tuple[int, ...], float]


def drawn(size: int, steps: int, temperature: float = 1.0, ends: int | tuple[int, ...] = EOS) -> DecodeSettings:
    return DecodeSettings("stochastic_beam", size, steps, ends, pad_token_id=0, temperature=temperature)


def first_two(probabilities: Sequences) -> Sequences:
    """Log-probability of every ordered pair that is drawn without replacement, as one tuple: a, -1, b."""
    return {
        (*a, -1, *b): log_a + log_b - math.log1p(-math.exp(log_a))
        for (a, log_a), (b, log_b) in itertools.permutations(probabilities.items(), 2)
    }


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return bias_token(tiny_model(vocabulary=4, seed=11), EOS, 1.0)


@pytest.fixture(scope="module")
def groups(model: torch.nn.Module) -> list[Group]:
    """4,000 groups of 3 of the same prompt."""
    return DecodeEngine(model).decode([PROMPT] * 4000, drawn(3, 3), seeds=range(4000))


@pytest.fixture(scope="module")
def exact(model: torch.nn.Module) -> Sequences:
    return all_sequences(next_logprobs(model, PROMPT), 4, 3, EOS)


def test_pairs_are_drawn_with_their_exact_probabilities(groups: list[Group], exact: Sequences) -> None:
    from collections import Counter

    pairs = Counter((*group.completions[0].tokens, -1, *group.completions[1].tokens) for group in groups)
    statistic, limit = chi_square(pairs, first_two(exact))
    assert statistic < limit
    swapped = Counter((*group.completions[1].tokens, -1, *group.completions[0].tokens) for group in groups)
    statistic, limit = chi_square(swapped, first_two(exact))
    assert statistic > limit, "the test must notice another order"


def test_a_temperature_changes_the_probabilities_and_the_logprobs(model: torch.nn.Module) -> None:
    from collections import Counter

    after = next_logprobs(model, PROMPT)
    groups = DecodeEngine(model).decode([PROMPT] * 2000, drawn(1, 3, 0.6), seeds=range(2000))
    counts = Counter(tuple(group.completions[0].tokens) for group in groups)
    exact = all_sequences(after, 4, 3, EOS, 0.6)
    assert (lambda found: found[0] < found[1])(chi_square(counts, exact))
    assert (lambda found: found[0] > found[1])(chi_square(counts, all_sequences(after, 4, 3, EOS, 1.0)))
    for group in groups[:50]:
        assert group.completions[0].logprob == pytest.approx(exact[tuple(group.completions[0].tokens)], abs=1e-5)


def test_keys_are_log_probabilities_with_gumbel_noise(groups: list[Group]) -> None:
    """The largest key of all is Gumbel noise itself, whatever is drawn first."""
    largest = [group.completions[0].key for group in groups]
    assert stats.kstest(largest, stats.gumbel_r.cdf).pvalue > 1e-3
    assert stats.kstest([group.completions[1].key for group in groups], stats.gumbel_r.cdf).pvalue < 1e-9
    for group in groups:
        keys = [completion.key for completion in group.completions]
        assert group.kappa is not None and [*keys, group.kappa] == sorted([*keys, group.kappa], reverse=True)
        assert len({tuple(completion.tokens) for completion in group.completions}) == 3


@pytest.mark.parametrize("value", [len, lambda tokens: float(tokens[0] == 3), lambda tokens: (-1.0) ** sum(tokens)])
def test_inclusion_weights_give_the_expected_value_without_bias(
    groups: list[Group], exact: Sequences, value: Callable[[tuple[int, ...]], float]
) -> None:
    """Kool et al. 2019, equation 12: needs kappa, and the keys' joint distribution, to be right."""
    expected = sum(math.exp(logprob) * value(tokens) for tokens, logprob in exact.items())
    estimates = []
    for group in groups:
        assert group.kappa is not None
        terms = [
            math.exp(c.logprob) / -math.expm1(-math.exp(c.logprob - group.kappa)) * value(tuple(c.tokens))
            for c in group.completions
        ]
        estimates.append(sum(terms))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(expected, abs=3.5 * error)
    unweighted = [np.mean([value(tuple(c.tokens)) for c in group.completions]) for group in groups]
    assert abs(np.mean(unweighted) - expected) > 3.5 * np.std(unweighted) / math.sqrt(len(groups)), "no test at all"


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
def test_every_engine_draws_the_same_whatever_the_batch(engine: str) -> None:
    model = bias_token(tiny_model(vocabulary=7, seed=3), EOS, 0.5)
    make = {**ENGINES, "plain": plain_engine}[engine]
    prompts, seeds = ragged_prompts(6, 7, seed=1), [9, 4, 4, 2**31, 0, 5]
    expected = DecodeEngine(model).decode(prompts, drawn(5, 6), seeds)
    for found in (
        make(model).decode(prompts, drawn(5, 6), seeds),
        [make(model).decode([prompt], drawn(5, 6), [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)],
        make(model, max_rows=12).decode(prompts, drawn(5, 6), seeds),
    ):
        for one, other in zip(found, expected, strict=True):
            assert [c.tokens for c in one.completions] == [c.tokens for c in other.completions]
            assert [c.key for c in one.completions] == pytest.approx([c.key for c in other.completions], abs=1e-4)
            assert one.kappa == pytest.approx(other.kappa, abs=1e-4)
            exact = next_logprobs(model, one.prompt_ids)
            for completion in one.completions:
                places = enumerate(completion.tokens)
                logps = [exact(tuple(completion.tokens[:place]))[token] for place, token in places]
                assert completion.logprobs == pytest.approx(logps, abs=1e-4)
                assert completion.finished == (completion.tokens[-1] == EOS)


def test_where_fewer_exist_all_are_drawn_and_nothing_is_left() -> None:
    model = tiny_model(vocabulary=3, seed=2)
    exact = all_sequences(next_logprobs(model, PROMPT[:2]), 3, 2, EOS)
    assert len(exact) == 7
    for size, kappa_is_there in ((6, True), (7, False), (30, False)):
        group = DecodeEngine(model).decode([PROMPT[:2]], drawn(size, 2), [5])[0]
        assert len(group.completions) == min(size, 7) and (group.kappa is not None) == kappa_is_there
        assert {tuple(completion.tokens) for completion in group.completions} <= set(exact)


def test_several_end_tokens_each_end_a_completion() -> None:
    model = tiny_model(vocabulary=5, seed=7)
    group = DecodeEngine(model).decode([PROMPT], drawn(20, 4, ends=(2, 4)), [3])[0]
    assert any(completion.tokens[-1] == 4 for completion in group.completions)
    for completion in group.completions:
        assert not {2, 4} & set(completion.tokens[:-1])


def test_noise_is_gumbel_independent_between_places_streams_and_seeds() -> None:
    states = noise_streams([7, 8], 3, 4)
    assert states.shape == (2, 5, 3) and len(set(states.flatten().tolist())) == 30
    noise = gumbels(states, 4000)
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    correlations = np.corrcoef(noise.reshape(30, 4000).numpy()) - np.eye(30)
    assert np.abs(correlations).max() < 0.08
    assert np.abs(np.corrcoef(noise[..., :-1].flatten(), noise[..., 1:].flatten())[0, 1]) < 0.02
    neighbours = gumbels(torch.tensor([0, 1, -1, 2**62]), 4000).numpy()
    assert np.abs(np.corrcoef(neighbours) - np.eye(4)).max() < 0.08


def test_seeds_are_needed() -> None:
    with pytest.raises(UserError, match="needs 1 seeds, found 0"):
        DecodeEngine(tiny_model(vocabulary=4, seed=1)).decode([PROMPT], drawn(2, 2))
