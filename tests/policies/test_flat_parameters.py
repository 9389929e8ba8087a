"""Weights as one flat buffer: exact, tied weights once, another architecture refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bgrpo.policies.io import flatten_parameters, load_flat_parameters
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(0, 0)
IDS = torch.tensor([[2, 6, 9, 18, 1]])


def policy(seed: int, **shape: int) -> PreTrainedModel:
    return build_policy(TOKENIZER, **({"layers": 2, "heads": 2, "width": 16, "context": 32} | shape), seed=seed).eval()


def llama(tied: bool) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [lambda: policy(0), lambda: llama(tied=True), lambda: llama(tied=False)])
def test_round_trip_is_exact_from_a_read_only_buffer(make: object) -> None:
    source, target = make(), make()  # type: ignore[operator]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    buffer = flatten_parameters(source)
    assert buffer.size == 32 + 4 * sum(parameter.numel() for parameter in source.parameters())  # tied weights once
    buffer.setflags(write=False)
    load_flat_parameters(target, buffer)
    assert torch.equal(source(IDS).logits, target(IDS).logits)
    assert np.array_equal(flatten_parameters(target), buffer)


def test_a_used_buffer_is_written_again_if_it_fits() -> None:
    first = flatten_parameters(policy(0))
    kept = first.copy()
    second = flatten_parameters(policy(1), first)
    assert second is first
    assert np.array_equal(second, flatten_parameters(policy(1))) and not np.array_equal(second, kept)
    larger = flatten_parameters(policy(2, layers=3), first)
    assert larger is not first and larger.size > first.size


def test_weights_whose_memory_has_gaps_are_filled() -> None:
    source, target = policy(0), policy(1)
    for model in (source, target):
        weight = model.get_input_embeddings().weight
        weight.data = torch.stack([weight.data, weight.data], -1)[..., 0]
        assert not weight.is_contiguous()
    load_flat_parameters(target, flatten_parameters(source))
    assert torch.equal(source(IDS).logits, target(IDS).logits)


def test_loading_casts_to_the_dtype_of_the_model() -> None:
    source, target = policy(0), policy(1).to(torch.bfloat16)
    load_flat_parameters(target, flatten_parameters(source))
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(torch.bfloat16))


def test_bf16_weights_travel_without_loss() -> None:
    source = policy(0).to(torch.bfloat16)
    target = policy(1).to(torch.bfloat16)
    load_flat_parameters(target, flatten_parameters(source))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("other", [{"layers": 3}, {"width": 32}, {"context": 33}])
def test_another_size_is_refused(other: dict[str, int]) -> None:
    target = policy(1, **other)
    before = flatten_parameters(target)
    with pytest.raises(ValueError, match="another architecture"):
        load_flat_parameters(target, flatten_parameters(policy(0)))
    assert np.array_equal(before, flatten_parameters(target))


def test_same_size_with_other_names_is_refused() -> None:
    source, target = torch.nn.Module(), torch.nn.Module()
    source.a, target.b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="names or shapes"):
        load_flat_parameters(target, flatten_parameters(source))  # type: ignore[arg-type]
    assert target.b.sum() == 0


def test_a_cut_or_mistyped_buffer_is_refused() -> None:
    buffer = flatten_parameters(policy(0))
    for bad in (buffer[:-4], buffer.view(np.float32), buffer.reshape(1, -1)):
        with pytest.raises(ValueError, match="another architecture"):
            load_flat_parameters(policy(1), bad)
