"""Which models the tree-shaped decoding serves exactly; all others are refused by name."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bgrpo.errors import UserError

SUPPORTED_MODEL_TYPES = (
    *("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2"),
    *("olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
)
"""Decoder-only models whose attention is a registered function, which gets window and cap of the scores as arguments,
and reads positions from ``position_ids`` and nothing from key indices."""

SUPPORTED_ATTENTION = ("eager", "sdpa")
"""Attention implementations that take a 4-D additive mask."""

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angle depends on the token's own position only, not on the longest sequence at hand."""


def check_supported(model: PreTrainedModel) -> None:
    """Refuse a model whose logits would differ between the tree and a plain forward pass.

    Raises:
        UserError: names the model and the property that is not supported.
    """
    config = model.config
    name = f"{type(model).__name__} (model_type {config.model_type!r})"
    reason = _reason_to_refuse(config)
    head = model.get_output_embeddings()
    if reason is None and head is None:
        reason = "it has no language-modelling head; load it with AutoModelForCausalLM"
    if reason is None and not isinstance(head, nn.Linear):
        reason = f"its head is a {type(head).__name__}, expected a plain linear layer"
    if reason is not None:
        raise UserError(f"{name} cannot be decoded: {reason}")


def _reason_to_refuse(config: PretrainedConfig) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder-decoder; decoder-only models are supported"
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        return f"supported model types are {', '.join(SUPPORTED_MODEL_TYPES)}"
    if getattr(config, "add_cross_attention", False):
        return "it has cross-attention; decoder-only models are supported"
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for rope_type in (entry.get("rope_type", "default") for entry in by_layer):
        if rope_type not in SUPPORTED_ROPE_TYPES:
            return f"rope_type {rope_type!r} depends on the longest sequence of the batch"
    if config._attn_implementation not in SUPPORTED_ATTENTION:
        return (
            f"attn_implementation {config._attn_implementation!r} takes no tree-shaped mask; load it with "
            f"attn_implementation='sdpa'"
        )
    return None
