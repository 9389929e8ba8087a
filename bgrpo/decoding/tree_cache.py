"""The key-value cache of a search tree: each prompt once, then one node per generated token, shared by descendants.

The tree is never moved while the search goes on. A step adds one node per row, and a row's mask says which nodes are
its ancestors. Nodes without living descendants are dropped from time to time (:meth:`TreeCache.compact`).

Shape letters: G prompts, H key-value heads, P prompt places (longest prompt less its last token, padded on the right),
N nodes so far, S rows of this step, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class TreeLayer(DynamicLayer):
    """One layer's keys and values [G, H, places, D], in buffers with room to grow.

    Args:
        headroom: places to reserve beyond those needed whenever a buffer is allocated.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, headroom: int) -> None:
        super().__init__()
        self.headroom = headroom
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the places of one forward pass; called by the model's attention. Returns all keys and values."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = self._room_for(key_states), self._room_for(value_states)
        elif self.length > self.keys.shape[-2]:
            old_keys, old_values = self.keys, self.values
            self.keys, self.values = self._room_for(key_states), self._room_for(value_states)
            self.keys[:, :, :start] = old_keys[:, :, :start]
            self.values[:, :, :start] = old_values[:, :, :start]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Places in use, which is what the model's mask of the prompts' own pass is sized by."""
        return self.length

    def keep_places(self, prompts: Tensor | None, prompt_places: int, places_GM: Tensor) -> None:
        """Keep all prompt places and the given later ones; with ``prompts``, keep only these prompts, in this order."""
        self.keys = self._kept(self.keys, prompts, prompt_places, places_GM)
        self.values = self._kept(self.values, prompts, prompt_places, places_GM)
        self.length = prompt_places + places_GM.shape[1]

    def _room_for(self, states_GHSD: Tensor) -> Tensor:
        groups, heads, _, width = states_GHSD.shape
        return states_GHSD.new_empty(groups, heads, self.length + self.headroom, width)

    @staticmethod
    def _kept(buffer: Tensor, prompts: Tensor | None, prompt_places: int, places_GM: Tensor) -> Tensor:
        if prompts is not None:
            buffer = buffer.index_select(0, prompts)
        groups, heads, _, width = buffer.shape
        nodes_GHMD = buffer.gather(2, places_GM[:, None, :, None].expand(groups, heads, -1, width))
        buffer[:, :, prompt_places : prompt_places + places_GM.shape[1]] = nodes_GHMD
        return buffer


class TreeCache(Cache):
    """Cache and attention mask of one search tree per prompt.

    Order of calls: one forward pass over the prompts' P places, then per step :meth:`descend`, now and then
    :meth:`compact`, and :meth:`add_nodes`, whose mask goes with the forward pass over the new nodes.

    Args:
        layers: transformer layers of the model.
        headroom: node places to reserve per allocation.
        valid_GP: True at the prompts' tokens, False at padding.
        dtype: of the model; the mask is additive, 0 or the most negative number.
    """

    def __init__(self, layers: int, headroom: int, valid_GP: Tensor, dtype: torch.dtype) -> None:
        self._tree_layers = [TreeLayer(headroom) for _ in range(layers)]
        super().__init__(layers=list(self._tree_layers))
        self._blocked = torch.finfo(dtype).min
        shape = (valid_GP.shape[0], 1, valid_GP.shape[1])
        allowed_G1P = torch.zeros(shape, dtype=dtype, device=valid_GP.device)
        self._prompt_mask_G1P = allowed_G1P.masked_fill_(~valid_GP[:, None], self._blocked)
        self._node_mask_GSN = allowed_G1P.new_empty(shape[0], 1, 0)

    def descend(self, parents_GS: Tensor) -> None:
        """Let the rows be children of the given rows of the step before."""
        rows = parents_GS[..., None].expand(-1, -1, self._node_mask_GSN.shape[-1])
        self._node_mask_GSN = self._node_mask_GSN.gather(1, rows)

    def compact(self, live_GS: Tensor, prompts: Tensor | None) -> None:
        """Drop every node that no live row descends from, and every prompt that is not kept.

        Waits for the device: the new size must be known.

        Args:
            live_GS: rows that go on; the others' ancestors may be dropped.
            prompts: increasing indices of the prompts to keep; None keeps all.
        """
        mask_GSN = self._node_mask_GSN
        needed_GN = ((mask_GSN == 0) & live_GS[..., None]).any(1)
        if prompts is not None:
            mask_GSN, needed_GN = mask_GSN[prompts], needed_GN[prompts]
            self._prompt_mask_G1P = self._prompt_mask_G1P[prompts]
        size = int(needed_GN.sum(-1).max())
        # stable: needed nodes first, in order of age; a prompt that needs fewer keeps some that its live rows mask
        nodes_GM = (~needed_GN).to(torch.uint8).argsort(dim=-1, stable=True)[:, :size]
        self._node_mask_GSN = mask_GSN.gather(2, nodes_GM[:, None].expand(-1, mask_GSN.shape[1], -1))
        prompt_places = self._prompt_mask_G1P.shape[-1]
        for layer in self._tree_layers:
            layer.keep_places(prompts, prompt_places, nodes_GM + prompt_places)

    def add_nodes(self, rows: int) -> Tensor:
        """Give each row its new node; returns the additive mask [G, 1, S, P + N] of the forward pass that fills it."""
        own_SS = self._prompt_mask_G1P.new_full((rows, rows), self._blocked).fill_diagonal_(0)
        groups = self._prompt_mask_G1P.shape[0]
        self._node_mask_GSN = torch.cat([self._node_mask_GSN, own_SS.expand(groups, -1, -1)], -1)
        return torch.cat([self._prompt_mask_G1P.expand(-1, rows, -1), self._node_mask_GSN], -1)[:, None]
