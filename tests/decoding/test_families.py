"""Every type of model, with its windows and caps, against a float64 forward pass of whole rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.tiny_models import FAMILIES, PLAIN, ragged_prompts, tiny_model
from reference.beam_oracle import beam_search, next_logprobs

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.attention_rules import AttentionRules, band, causal_attention, masked_attention
from bgrpo.decoding.support import TREE_MODEL_TYPES
from bgrpo.errors import UserError

EOS, VOCABULARY, STEPS = 2, 11, 8


def test_there_is_one_of_each() -> None:
    assert sorted(FAMILIES) == sorted(TREE_MODEL_TYPES)


@pytest.mark.parametrize("kind", sorted(FAMILIES | PLAIN))
def test_beams_and_samples_are_those_of_whole_rows(kind: str) -> None:
    """On every engine that serves it; prompts have 1 to 14 tokens, and windows 4 to 6."""
    model = tiny_model(kind, VOCABULARY, seed=2 if kind == "rwkv" else 1)
    prompts = ragged_prompts(3, VOCABULARY, seed=0, longest=14)
    exact = [next_logprobs(model, prompt) for prompt in prompts]
    expected = [beam_search(after, 4, STEPS, EOS) for after in exact]
    assert min(result.margin for result in expected) > 2e-5, "too close a call for float32: choose another seed"
    beams = DecodeSettings("beam", 4, STEPS, EOS, pad_token_id=0)
    samples = dataclasses.replace(beams, mode="sample", temperature=1.5)
    for engine in (plain_engine, *(ENGINES.values() if kind in FAMILIES else ())):
        for group, result in zip(engine(model).decode(prompts, beams), expected, strict=True):
            found = {tuple(completion.tokens): completion.logprob for completion in group.completions}
            assert found == pytest.approx(result.scores, abs=1e-4)
        drawn = engine(model).decode(prompts, samples, seeds=range(3))
        for after, group in zip(exact, drawn, strict=True):
            for completion in group.completions[:2]:
                for place, (token, logp) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
                    wanted = torch.tensor(after(tuple(completion.tokens[:place]))) / 1.5
                    assert logp == pytest.approx(float(wanted.log_softmax(-1)[token]), abs=1e-4)


@pytest.mark.parametrize("rules", [AttentionRules(0.3, 7), AttentionRules(0.3, 700), AttentionRules(0.3, None, 2.0)])
def test_a_long_prompt_is_read_in_pieces(rules: AttentionRules) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 1300, 8, generator=draw) for heads in (4, 2, 2))
    wanted = masked_attention(query, key, value, band(range(1300), range(1300), rules.window, query), rules)
    assert torch.allclose(causal_attention(query, key, value, rules), wanted, atol=1e-5)


def test_an_argument_that_attention_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2", VOCABULARY)
    attention = type(model.transformer.h[0].attn)
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **kwargs: forward(*args, **kwargs, position_bias=1.0))
    with pytest.raises(UserError, match="GPT2Attention asks its attention for position_bias, which is not known here"):
        DecodeEngine(model).decode([[1, 2]], DecodeSettings("beam", 2, 2, EOS, 0))
