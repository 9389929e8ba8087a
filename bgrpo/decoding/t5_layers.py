"""The decoder of a T5 layer by layer, whatever stands behind its attentions: the search tree, or packed groups.

The operations are those of transformers' own pass. That one makes the bias of every pair of places, also between tokens
and prompts, where it is zero; here it is made for each distance once.

Shape letters: R tokens of a row, E model width, H heads, D head width, B distances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bgrpo.decoding.attention_apart import AttendsApart

T5_MODEL_TYPES = ("mt5", "t5", "umt5")


class T5Decoder:
    """Of a T5, mT5 or UMT5, which stays as it is.

    Attributes:
        cross: the attentions to the prompt, one per layer.

    Args:
        model: with its head, without dropout.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        self._stack: Any = model.get_decoder()
        scales = config.model_type != "mt5" and config.scale_decoder_outputs  # transformers' mT5 never does
        self._scale = config.d_model**-0.5 if scales else None
        self.cross: list[nn.Module] = [block.layer[1].EncDecAttention for block in self._stack.block]

    def biases(self) -> list[Tensor]:
        """What is added to scores in each layer, [H, B], of each distance back; the last is that of all beyond."""
        found: list[Tensor] = []
        for block in self._stack.block:
            attention = block.layer[0].SelfAttention
            if attention.has_relative_attention_bias:
                distances = int(attention.relative_attention_max_distance) + 1
                bias_1H1B = attention.compute_bias(1, distances, past_seen_tokens=distances - 1)
                found.append(bias_1H1B[0, :, 0].flip(-1))
            else:
                found.append(found[-1])
        return found

    def states(self, ids_1R: Tensor, attends: AttendsApart, biases: list[Tensor]) -> Tensor:
        """The last states [1, R, E] of tokens, as the head takes them.

        Args:
            ids_1R: in any order; who attends to whom is the attentions' business.
            attends: gives layer ``n`` the numbers ``2 n`` (path) and ``2 n + 1`` (prompt).
            biases: see :meth:`biases`.
        """
        states_1RE = self._stack.embed_tokens(ids_1R)
        for number, (block, bias_HB) in enumerate(zip(self._stack.block, biases, strict=True)):
            layer: Callable[[Tensor, Tensor], Tensor] = partial(_layer, block, number, attends)
            if block.gradient_checkpointing and block.training:
                layer = partial(block._gradient_checkpointing_func, layer)
            states_1RE = layer(states_1RE, bias_HB)
        states_1RE = self._stack.final_layer_norm(states_1RE)
        return states_1RE if self._scale is None else states_1RE * self._scale


def _layer(block: Any, number: int, attends: AttendsApart, states_1RE: Tensor, bias_HB: Tensor) -> Tensor:
    first, second, last = block.layer
    attention, cross = first.SelfAttention, second.EncDecAttention
    given = first.layer_norm(states_1RE)
    query, key, value = (in_heads(product(given), attention) for product in (attention.q, attention.k, attention.v))
    found_RHD = attends.attend_path(2 * number, query, key, value, bias_HB)
    states_1RE = states_1RE + attention.o(found_RHD.flatten(1)[None])
    query = in_heads(cross.q(second.layer_norm(states_1RE)), cross)
    found_RHD = attends.attend_prompt(2 * number + 1, query)
    states_1RE = states_1RE + cross.o(found_RHD.flatten(1)[None])
    result: Tensor = last(states_1RE)
    return result


def in_heads(states_1RE: Tensor, attention: Any) -> Tensor:
    """Queries, keys or values of an attention, [H, R, D]."""
    return states_1RE.view(states_1RE.shape[1], attention.n_heads, -1).transpose(0, 1)


def direct_t5(model: PreTrainedModel) -> Callable[[Tensor, Tensor, AttendsApart], Tensor]:
    """The decoder's pass over the rows of one step: from token ids, and positions that nothing asks for."""
    decoder = T5Decoder(model)
    with torch.inference_mode():
        biases = decoder.biases()
    return lambda ids_1R, _, tree: decoder.states(ids_1R, tree, biases)
