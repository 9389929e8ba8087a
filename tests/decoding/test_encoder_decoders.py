"""Encoder-decoders, with one passage or several fused: beams and samples against a float64 pass without padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.tiny_encoder_decoders import ENCODER_DECODERS, EOS, exact_logprobs, tiny_encoder_decoder
from decoding.tiny_models import ragged_prompts
from reference.beam_oracle import beam_search

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.support import service_of
from bgrpo.decoding.t5_layers import T5_MODEL_TYPES
from bgrpo.errors import UserError
from bgrpo.groups import fused, passages_of
from bgrpo.policies.folder import ENCODER_DECODER_TYPES

VOCABULARY, STEPS = 11, 6
PROMPTS = [
    *ragged_prompts(2, VOCABULARY, seed=0, longest=9),
    fused(ragged_prompts(3, VOCABULARY, seed=1, longest=8)),
    fused(ragged_prompts(2, VOCABULARY, seed=2, longest=5)),
]
BEAMS = DecodeSettings("beam", 4, STEPS, EOS, pad_token_id=0)


def test_there_is_one_of_each() -> None:
    assert {kind.removesuffix(" untied") for kind in ENCODER_DECODERS} == set(ENCODER_DECODER_TYPES)


def test_passages_of_a_fused_prompt() -> None:
    assert PROMPTS[2].count(-1) == 2 and fused(passages_of(PROMPTS[2])) == PROMPTS[2]
    assert passages_of([5, 6]) == [[5, 6]] and passages_of([5, -1]) == [[5], []]


@pytest.mark.parametrize("kind", sorted(ENCODER_DECODERS))
def test_beams_and_samples_are_those_of_whole_rows(kind: str) -> None:
    """On every engine that serves it."""
    model = tiny_encoder_decoder(kind, VOCABULARY)
    exact = [exact_logprobs(model, prompt) for prompt in PROMPTS]
    expected = [beam_search(after, 4, STEPS, EOS) for after in exact]
    assert min(result.margin for result in expected) > 2e-5, "too close a call for float32: choose another seed"
    by_tree = kind.removesuffix(" untied") in T5_MODEL_TYPES
    assert service_of(model).engine == ("tree" if by_tree else "plain")
    for make in (plain_engine, *(ENGINES.values() if by_tree else ())):
        engine = make(model)
        for group, result in zip(engine.decode(PROMPTS, BEAMS), expected, strict=True):
            found = {tuple(completion.tokens): completion.logprob for completion in group.completions}
            assert found == pytest.approx(result.scores, abs=1e-4)
        samples = dataclasses.replace(BEAMS, mode="sample", temperature=1.5)
        for after, group in zip(exact, engine.decode(PROMPTS, samples, seeds=range(len(PROMPTS))), strict=True):
            for completion in group.completions[:2]:
                for place, (token, logp) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
                    wanted = torch.tensor(after(tuple(completion.tokens[:place]))) / 1.5
                    assert logp == pytest.approx(float(wanted.log_softmax(-1)[token]), abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_tree_draws_without_replacement_what_separate_rows_draw(engine: str) -> None:
    """And far down a path, where distances share a bias, each token has its teacher-forced log-probability."""
    model = tiny_encoder_decoder("t5", VOCABULARY, relative_attention_num_buckets=6, relative_attention_max_distance=9)
    drawn = dataclasses.replace(BEAMS, mode="stochastic_beam", max_new_tokens=24)
    found, expected = (make(model).decode(PROMPTS, drawn, range(4)) for make in (ENGINES[engine], plain_engine))
    longest = 0
    for group, other, prompt in zip(found, expected, PROMPTS, strict=True):
        assert [one.tokens for one in group.completions] == [one.tokens for one in other.completions]
        keys = [[one.key for one in of.completions] for of in (group, other)]
        assert keys[0] == pytest.approx(keys[1], abs=1e-4) and group.kappa == pytest.approx(other.kappa, abs=1e-4)
        tokens = max((one.tokens for one in group.completions), key=len)
        logps = next(one.logprobs for one in group.completions if one.tokens == tokens)
        after = exact_logprobs(model, prompt)
        assert logps == pytest.approx([after(tuple(tokens[:n]))[token] for n, token in enumerate(tokens)], abs=1e-4)
        longest = max(longest, len(tokens))
    assert longest > 12


def test_bf16_is_near_fp32() -> None:
    model = tiny_encoder_decoder("t5 untied", VOCABULARY)
    for group in DecodeEngine(model, precision="bf16").decode(PROMPTS, BEAMS):
        after = exact_logprobs(model, group.prompt_ids)
        for one in group.completions:
            wanted = sum(after(tuple(one.tokens[:place]))[token] for place, token in enumerate(one.tokens))
            assert one.logprob == pytest.approx(wanted, abs=0.3)


def test_the_encoder_reads_each_passage_once() -> None:
    model = tiny_encoder_decoder()
    rows: list[int] = []
    model.get_encoder().register_forward_pre_hook(
        lambda _, __, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    engine = DecodeEngine(model)
    engine.decode(PROMPTS, BEAMS)
    rows.clear()
    engine.decode(PROMPTS, BEAMS)
    assert sum(rows) == sum(len(passages_of(prompt)) for prompt in PROMPTS) == 7


def test_what_a_decoder_cannot_hold_is_refused() -> None:
    engine = DecodeEngine(tiny_encoder_decoder("bart"))
    assert engine.decode([[5] * 64], dataclasses.replace(BEAMS, max_new_tokens=64))
    with pytest.raises(UserError, match=r"prompt 0 is too long: 65 tokens, and the model's context has 64"):
        engine.decode([fused([[5], [5] * 65])], BEAMS)
    with pytest.raises(UserError, match="max_new_tokens=65: the model's decoder has 64 places"):
        engine.decode([[5]], dataclasses.replace(BEAMS, max_new_tokens=65))
    with pytest.raises(UserError, match="prompt 1 is empty"):
        engine.decode([[5], [5, -1]], BEAMS)
