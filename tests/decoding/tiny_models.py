"""Random models of every supported architecture, small enough for brute force."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_attention_heads": 2},
    "gpt_neox": {"num_attention_heads": 2, "intermediate_size": 48},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
}


def tiny_model(
    kind: str = "gpt2", vocabulary: int = 7, seed: int = 0, attention: str = "sdpa", context: int = 64, **options: Any
) -> PreTrainedModel:
    """A two-layer model whose next-token distributions are far from uniform and depend on the whole context."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation=attention,
        **{**OPTIONS.get(kind, {}), **options},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:  # the usual initialisation makes all distributions nearly uniform
                    parameter.normal_(std=0.5 if "wte" in name or "embed" in name or "lm_head" in name else 0.3)
    return model.eval()


def bias_token(model: PreTrainedModel, token: int, bias: float) -> PreTrainedModel:
    """Add a constant to one token's logit, to make it likely or impossible; returns the model."""
    head = model.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        biased = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()[token] = bias
    model.set_output_embeddings(biased.to(head.weight.dtype))
    return model


def ragged_prompts(count: int, vocabulary: int, seed: int, longest: int = 9) -> list[list[int]]:
    """Random prompts of 1 to ``longest`` tokens, the first as short and the second as long as can be."""
    random = Random(seed)
    lengths = [1, longest, *(random.randint(1, longest) for _ in range(count - 2))][:count]
    return [[random.randrange(vocabulary) for _ in range(length)] for length in lengths]
