"""Which models the search tree serves exactly, which the plain path serves, and which none can: one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bgrpo.decoding.t5_layers import T5_MODEL_TYPES
from bgrpo.errors import UserError

EngineName = Literal["auto", "tree", "plain"]

TREE_MODEL_TYPES = (
    *("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2"),
    *("olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
)
"""Decoder-only models whose attention is a registered function, which gets window and cap of the scores as arguments,
and reads positions from ``position_ids`` and nothing from key indices."""

TREE_ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa")
"""Attention implementations whose results are those of the formula, in fp32."""

TREE_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angle depends on the token's own position only, not on the longest sequence at hand."""


@dataclass(frozen=True, slots=True)
class Service:
    """How a model is decoded and scored.

    Attributes:
        engine: ``tree`` shares what completions have in common; ``plain`` is the model's own forward pass over rows.
        reason: why not by the tree; empty where it is, or where the plain path was asked for.
        encoder: whether prompts go through an encoder.
    """

    engine: Literal["tree", "plain"]
    reason: str = ""
    encoder: bool = False

    @property
    def note(self) -> str:
        """What a user is told once; nothing where the engine is the fast one, or was asked for."""
        return f"the slow path decodes and scores this policy, row by row: {self.reason}" if self.reason else ""

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that the engine does not have.

        Raises:
            UserError: names the option.
        """
        if self.engine == "plain" and precision != "fp32":
            why = self.reason or "rollout.engine=plain"
            raise UserError(f"dtype {precision} is for the fast tree, but the plain path decodes ({why}): use fp32")


def service_of(model: PreTrainedModel, wanted: EngineName = "auto") -> Service:
    """The tree where it gives what a plain forward pass gives; else the plain path.

    Args:
        model: a language model, causal or with an encoder.
        wanted: ``tree`` refuses what the tree does not serve, ``plain`` always takes the plain path.

    Raises:
        UserError: names the model and why it is refused.
    """
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    refused = _reason_to_refuse(model)
    if refused:
        raise UserError(f"{name} cannot be decoded: {refused}")
    encoder = bool(model.config.is_encoder_decoder)
    if wanted == "plain":
        return Service("plain", encoder=encoder)
    reason = _reason_against_the_tree(model)
    if reason and wanted == "tree":
        raise UserError(f"{name} cannot be decoded with rollout.engine=tree: {reason}; use rollout.engine=auto")
    return Service("plain", f"{name}: {reason}", encoder) if reason else Service("tree", encoder=encoder)


def context_of(config: PretrainedConfig) -> int | None:
    """Most tokens of a prompt and its completion; None where the model has no limit.

    Of an encoder-decoder: most tokens of each passage, and most of a completion.

    Where the angles of all tokens change once a row is longer than the original context, that is the limit: a row would
    be scored otherwise than it was decoded, and otherwise beside other rows.
    """
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    for entry in _rope_entries(config):
        if entry.get("rope_type") in ("dynamic", "longrope"):
            limits.append(entry.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def room_for_prompt(config: PretrainedConfig, max_new_tokens: int) -> int | None:
    """Most tokens of a prompt, or of each passage of one, before so many new ones; None where there is no limit.

    None of them, or fewer, where the new ones alone are too many.
    """
    context = context_of(config)
    if context is None:
        return None
    if config.is_encoder_decoder:
        return context if max_new_tokens <= context else 0
    return context - max_new_tokens


def _rope_entries(config: PretrainedConfig) -> list[dict[str, Any]]:
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]


def _reason_to_refuse(model: PreTrainedModel) -> str:
    if model.config.is_encoder_decoder:
        return "" if model.get_output_embeddings() is not None else "it has no language-modelling head"
    if getattr(model.config, "add_cross_attention", False):
        return "it has cross-attention; decoder-only models are supported"
    if model.get_output_embeddings() is None:
        return "it has no language-modelling head; load it with AutoModelForCausalLM"
    return ""


def _reason_against_the_tree(model: PreTrainedModel) -> str:
    config = model.config
    if config.model_type not in (T5_MODEL_TYPES if config.is_encoder_decoder else TREE_MODEL_TYPES):
        return "the fast tree does not know this type"
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if layers:
        return f"the fast tree has no layers of type {', '.join(sorted(layers))}"
    for entry in _rope_entries(config):
        if entry.get("rope_type", "default") not in TREE_ROPE_TYPES:
            return f"rope_type {entry['rope_type']!r} depends on the longest sequence of the batch"
    if config._attn_implementation not in TREE_ATTENTION_IMPLEMENTATIONS:
        return f"attn_implementation {config._attn_implementation!r} takes no tree-shaped mask"
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return f"its head is a {type(head).__name__}, the fast tree needs a plain linear layer"
    return ""
