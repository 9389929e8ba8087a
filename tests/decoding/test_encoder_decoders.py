"""Encoder-decoders, with one passage or several fused: beams and samples against a float64 pass without padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoding.tiny_encoder_decoders import ENCODER_DECODERS, EOS, exact_logprobs, tiny_encoder_decoder
from decoding.tiny_models import ragged_prompts
from reference.beam_oracle import beam_search

from bgrpo.decoding import DecodeEngine, DecodeSettings
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
    model = tiny_encoder_decoder(kind, VOCABULARY)
    exact = [exact_logprobs(model, prompt) for prompt in PROMPTS]
    expected = [beam_search(after, 4, STEPS, EOS) for after in exact]
    assert min(result.margin for result in expected) > 2e-5, "too close a call for float32: choose another seed"
    engine = DecodeEngine(model)
    for group, result in zip(engine.decode(PROMPTS, BEAMS), expected, strict=True):
        found = {tuple(completion.tokens): completion.logprob for completion in group.completions}
        assert found == pytest.approx(result.scores, abs=1e-4)
    samples = dataclasses.replace(BEAMS, mode="sample", temperature=1.5)
    for after, group in zip(exact, engine.decode(PROMPTS, samples, seeds=range(len(PROMPTS))), strict=True):
        for completion in group.completions[:2]:
            for place, (token, logp) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
                wanted = torch.tensor(after(tuple(completion.tokens[:place]))) / 1.5
                assert logp == pytest.approx(float(wanted.log_softmax(-1)[token]), abs=1e-4)


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
