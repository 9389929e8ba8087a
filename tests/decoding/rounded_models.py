"""What decoding in bf16 must compute: the model itself, with the same values rounded and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D


def rounded_to_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose layers' matrix products see and give bf16 values, as keys and values do; the head's do not."""
    rounded = copy.deepcopy(model)
    rounded.config._attn_implementation = "rounding_keys_and_values"
    for name, module in rounded.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not rounded.get_output_embeddings():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16().to(parameter.dtype)
            module.register_forward_pre_hook(lambda _, inputs: (_as_bf16(inputs[0]),))
            if not name.endswith(("c_fc", "dense_h_to_4h")):  # rounded after the activation, which is part of it
                module.register_forward_hook(lambda _module, _inputs, output: _as_bf16(output))
    return rounded


def _rounding_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
) -> Any:
    return sdpa_attention_forward(module, query, _as_bf16(key), _as_bf16(value), *rest, **options)


AttentionInterface.register("rounding_keys_and_values", _rounding_attention)
AttentionMaskInterface.register("rounding_keys_and_values", sdpa_mask)  # without, windows would not be seen


def _as_bf16(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().to(values.dtype)
