"""A GPT-2's pass over the rows of one step, without what transformers does around each layer.

The operations are those of transformers' forward pass, in the same order on the same numbers, so the results are equal
bit for bit. For a small policy and one prompt, what is left out takes as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from bgrpo.decoding.attention_rules import AttentionRules
from bgrpo.decoding.tree_attention import Attends, TreeStore

HiddenStates = Callable[[Tensor, Tensor, TreeStore], Tensor]
"""From token ids and positions [1, R] and what attends to the last hidden states [1, R, E]."""

_Layer = Callable[[Tensor, Attends], Tensor]
_KNOWN = (GPT2Block, GPT2Attention, GPT2MLP, Conv1D, nn.LayerNorm, nn.Dropout, nn.Embedding, nn.ModuleList)


def direct_gpt2(model: PreTrainedModel, modules: Sequence[nn.Module]) -> HiddenStates | None:
    """The pass of a GPT-2 as transformers makes it; None where any part of it is another, or somebody listens.

    Args:
        model: in evaluation mode; the present ``forward`` of each product and activation is taken.
        modules: all of the model's.
    """
    if type(model) is not GPT2LMHeadModel or model.config.add_cross_attention:
        return None
    body = model.transformer
    others = {id(module.act) for module in modules if isinstance(module, GPT2MLP)}
    others |= {id(model), id(body), id(model.lm_head)}
    if any(type(module) not in _KNOWN and id(module) not in others for module in modules):
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    tokens, places = body.wte.weight, body.wpe.weight
    blocks: Any = body.h
    layers, last = [_layer(block) for block in blocks], _norm(body.ln_f)

    def hidden(ids_1R: Tensor, positions_1R: Tensor, tree: Attends) -> Tensor:
        states = torch.embedding(tokens, ids_1R) + torch.embedding(places, positions_1R)
        for layer in layers:
            states = layer(states, tree)
        return last(states)

    return hidden


def _layer(block: GPT2Block) -> _Layer:
    attention, mlp = block.attn, block.mlp
    first, second = _norm(block.ln_1), _norm(block.ln_2)
    project, combine = attention.c_attn.forward, attention.c_proj.forward
    widen, act, narrow = mlp.c_fc.forward, mlp.act.forward, mlp.c_proj.forward
    index, rules = int(attention.layer_idx), AttentionRules(attention.scaling)
    heads, width = attention.num_heads, attention.head_dim

    def layer(states_1RE: Tensor, tree: Attends) -> Tensor:
        rows = states_1RE.shape[1]
        query, key, value = project(first(states_1RE)).view(rows, 3, heads, width).permute(1, 2, 0, 3).unbind(0)
        states_1RE = combine(tree.attend(index, query, key, value, rules).reshape(1, rows, -1)) + states_1RE
        return states_1RE + narrow(act(widen(second(states_1RE))))

    return layer


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda states: torch.layer_norm(states, shape, weight, bias, eps)
