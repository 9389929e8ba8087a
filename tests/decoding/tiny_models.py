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

_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_MIXTURE = {"num_experts_per_tok": 2, "experts_implementation": "eager"}  # the others have no float64 products
FAMILIES: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": 6,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.5,
    },
    "gemma3_text": {
        **GROUPED,
        **_MIXED,
        "head_dim": 8,
        "sliding_window": 6,
        "query_pre_attn_scalar": 5,
        "final_logit_softcapping": 2.5,
    },
    "granite": {
        **GROUPED,
        "logits_scaling": 1.7,
        "residual_multiplier": 0.6,
        "embedding_multiplier": 1.3,
        "attention_multiplier": 0.4,
    },
    "mistral": {**GROUPED, "sliding_window": 5},
    "mixtral": {**GROUPED, **_MIXTURE, "num_local_experts": 3, "sliding_window": 5},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **_MIXED, "sliding_window": 5},
    "opt": {"num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 24},
    "phi": GROUPED,
    "phi3": {**GROUPED, "sliding_window": 4},
    "qwen2": {**GROUPED, **_MIXED, "use_sliding_window": True, "sliding_window": 5},
    "qwen3": {**GROUPED, **_MIXED, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5},
    "qwen3_moe": {**GROUPED, **_MIXTURE, "num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8},
    "smollm3": {**GROUPED, **_MIXED, "use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [1, 0]},
    "starcoder2": {**GROUPED, "sliding_window": 4},
}
"""One of each type that the tree serves, with a window shorter than most rows where the type has one."""

PLAIN: dict[str, dict[str, Any]] = {
    "bloom": {"num_attention_heads": 4},
    "falcon": {"num_attention_heads": 4},
    "gptj": {"num_attention_heads": 4, "rotary_dim": 4},
    "mamba": {"state_size": 4},
    "qwen2_moe": {
        **GROUPED,
        **_MIXTURE,
        "num_experts": 3,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "rwkv": {},
}
"""Some that it does not: other attention, mixtures of experts, recurrent ones."""

_ONLY_EAGER = ("bloom", "gemma2", "mamba", "rwkv")


def tiny_model(
    kind: str = "gpt2", vocabulary: int = 7, seed: int = 0, attention: str = "sdpa", context: int = 64, **options: Any
) -> PreTrainedModel:
    """A two-layer model whose next-token distributions are far from uniform and depend on the whole context."""
    options = {**FAMILIES.get(kind, {}), **PLAIN.get(kind, {}), **options}
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager" if kind in _ONLY_EAGER else attention,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:  # the usual initialisation makes all distributions nearly uniform
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
