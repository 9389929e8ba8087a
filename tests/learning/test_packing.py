from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packing import ROUND, pack_groups, packed_logps

VOCABULARY = 31
DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHAPE = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
WIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **DROPOUTS, **SHAPE),
    "llama": LlamaConfig(num_key_value_heads=2, **WIDE, **SHAPE),
    "mistral": MistralConfig(num_key_value_heads=2, sliding_window=None, **WIDE, **SHAPE),
    "qwen2": Qwen2Config(num_key_value_heads=2, **WIDE, **SHAPE),
    "qwen3": Qwen3Config(num_key_value_heads=2, head_dim=8, **WIDE, **SHAPE),
    "gpt_neox": GPTNeoXConfig(**WIDE, **SHAPE),
}

Groups = list[tuple[list[int], list[list[int]]]]


def build(config: PretrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_groups(seed: int, count: int = 3, size: int = 5) -> Groups:
    """Ragged prompts and completions, with shared beginnings, repeats and completions that continue others."""
    rng = random.Random(seed)
    groups = []
    for _ in range(count):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))]
        stem = [rng.randrange(VOCABULARY) for _ in range(6)]
        completions = [stem[: rng.randint(1, 6)] for _ in range(2)]
        completions += [
            stem[: rng.randint(0, 6)] + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 5))]
            for _ in range(rng.randint(1, size))
        ]
        groups.append((prompt, completions))
    return groups


def separate_rows(
    model: PreTrainedModel, groups: Groups, temperature: float = 1.0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    logps, entropies = [], []
    for prompt, completions in groups:
        for completion in completions:
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
            distribution = torch.distributions.Categorical(logits=logits[len(prompt) - 1 : -1] / temperature)
            logps.append(distribution.log_prob(torch.tensor(completion)))
            entropies.append(distribution.entropy())
    return logps, entropies


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "temperature"), [*((name, 1.0) for name in CONFIGS), ("gpt2", 0.5), ("llama", 1.7)])
def test_equals_separate_rows_and_their_gradient(name: str, temperature: float, attention: str) -> None:
    model, groups = build(CONFIGS[name], attention), random_groups(1)
    weights = [torch.randn(len(completion)) for _, completions in groups for completion in completions]

    logps, entropies = separate_rows(model, groups, temperature)
    sum((logp * weight).sum() for logp, weight in zip(logps, weights, strict=True)).backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    model.zero_grad()

    packed = pack_groups(groups, "cpu")
    logps_BC, entropies_BC = packed_logps(model, packed, Scoring(temperature))
    weights_BC = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)
    (logps_BC * weights_BC).sum().backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])

    assert torch.allclose(logps_BC[packed.mask_BC], torch.cat(logps), atol=1e-5)
    assert torch.allclose(entropies_BC[packed.mask_BC], torch.cat(entropies), atol=1e-5)
    assert not logps_BC[~packed.mask_BC].any() and not entropies_BC[~packed.mask_BC].any()
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("seed", range(20))
def test_any_shape_of_group(seed: int) -> None:
    model, groups = build(CONFIGS["gpt2"]), random_groups(seed, count=1 + seed % 4, size=1 + seed)
    with torch.no_grad():
        packed = pack_groups(groups, "cpu")
        logps_BC, _ = packed_logps(model, packed)
        expected, _ = separate_rows(model, groups)
    assert torch.allclose(logps_BC[packed.mask_BC], torch.cat(expected), atol=1e-5)


def test_shared_beginnings_are_computed_once() -> None:
    packed = pack_groups([([5, 6], [[7, 8, 9, 1], [7, 8, 4, 1], [7, 1]]), ([3], [[2, 1]])], "cpu")
    # nodes: 7, 8, 9 and 4 of the first group, 2 of the second; the end tokens predict nothing
    assert packed.input_ids_1T[0, :8].tolist() == [5, 6, 3, 7, 8, 9, 4, 2]
    assert packed.position_ids_1T[0, :8].tolist() == [0, 1, 0, 2, 3, 4, 4, 1]
    assert packed.scored_S[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert packed.source_BC.tolist() == [[0, 2, 3, 4], [0, 2, 3, 5], [0, 2, 0, 0], [1, 6, 0, 0]]
    assert packed.layout.path_RC.tolist() == [[3, 4, 5], [3, 4, 6], [7, 7, 7]]


def test_one_token_completions_need_no_node() -> None:
    packed = pack_groups([([5], [[1], [4]]), ([5, 6, 7], [[1]])], "cpu")
    assert packed.input_ids_1T[0, :4].tolist() == [5, 5, 6, 7] and packed.layout.path_RC.numel() == 0
    assert packed.scored_S[:2].tolist() == [0, 3]


def test_sizes_are_multiples_that_come_again() -> None:
    for seed in range(10):
        packed = pack_groups(random_groups(seed), "cpu")
        assert packed.input_ids_1T.shape == packed.position_ids_1T.shape
        assert packed.input_ids_1T.shape[1] % ROUND == 0 and len(packed.scored_S) % ROUND == 0


def test_rows_beyond_the_completions_are_masked() -> None:
    packed = pack_groups([([5, 6], [[7, 1]])], "cpu", rows=3)
    assert packed.mask_BC.tolist() == [[True, True], [False, False], [False, False]]
    logps_BC, _ = packed_logps(build(CONFIGS["gpt2"]), packed)
    assert logps_BC[0].all() and not logps_BC[1:].any()


def test_what_others_wrote_does_not_reach_a_completion() -> None:
    model = build(CONFIGS["gpt2"])
    with torch.no_grad():
        alone, _ = packed_logps(model, pack_groups([([5, 6], [[7, 8, 1]])], "cpu"))
        together, _ = packed_logps(model, pack_groups([([5, 6], [[7, 8, 1], [9, 9, 9, 9, 1], [7, 3, 1]])], "cpu"))
    assert torch.allclose(alone[0], together[0, :3], atol=1e-6)


def test_large_groups_with_more_completions_than_tokens_in_the_vocabulary() -> None:
    model = build(CONFIGS["gpt2"])
    rng = random.Random(0)
    groups = [([3, 4, 5], [[rng.randrange(VOCABULARY), rng.randrange(VOCABULARY), 1] for _ in range(45)])]
    with torch.no_grad():
        packed = pack_groups(groups, "cpu")
        logps_BC, _ = packed_logps(model, packed)
        expected, _ = separate_rows(model, groups)
    assert torch.allclose(logps_BC, torch.stack(expected), atol=1e-5)


def test_bf16_policies_are_scored_in_fp32() -> None:
    model = build(CONFIGS["gpt2"]).to(torch.bfloat16)
    with torch.no_grad():
        logps_BC, entropies_BC = packed_logps(model, pack_groups(random_groups(3), "cpu"))
    assert logps_BC.dtype == entropies_BC.dtype == torch.float32
    assert torch.isfinite(logps_BC).all()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model, groups = build(CONFIGS["llama"]), random_groups(4)
    with torch.no_grad():
        expected, _ = packed_logps(model, pack_groups(groups, "cpu"))
        logps_BC, _ = packed_logps(model.cuda(), pack_groups(groups, "cuda"))
    assert torch.allclose(logps_BC.cpu(), expected, atol=1e-4)


def test_the_model_keeps_its_own_attention() -> None:
    model = build(CONFIGS["gpt2"])
    with torch.no_grad():
        packed_logps(model, pack_groups(random_groups(5), "cpu"))
        assert model.config._attn_implementation == "sdpa"
        model(input_ids=torch.tensor([[1, 2]]))
    with pytest.raises(IndexError):
        packed_logps(model, pack_groups([([5, VOCABULARY + 3], [[1]])], "cpu"))
    assert model.config._attn_implementation == "sdpa"
