"""How a model's attention reads the search tree: an attention function of transformers, and two stores behind it.

The model is called without a cache and with ``tree=``, an object with :class:`Attends`; transformers hands it on to
every layer's attention function, here :func:`tree_attention`, together with the new tokens' queries, keys and values.
A decoder that reads its prompt by cross-attention has two attentions per layer, of the path and of the prompt.

Shape letters: G prompts, H heads, P prompt places (a prompt's tokens but the last), N nodes, R rows, D head width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from bgrpo.decoding.attention_apart import UNSCALED, AttendsApart, bias_of_path
from bgrpo.decoding.attention_rules import HIDDEN, AttentionRules, masked_attention, rules_of
from bgrpo.decoding.compiled import LANES, TILE, KernelLayer, TreeAttentionKernel, tiles_of
from bgrpo.decoding.paths import NodePaths, ReusingPaths
from bgrpo.decoding.slots import Rows

TREE_ATTENTION = "bgrpo_tree"
"""Name of the attention implementation, registered below."""


class Attends(Protocol):
    """What stands behind the attention of one forward pass."""

    def attend(
        self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, rules: AttentionRules
    ) -> Tensor:
        """Outputs [R, H, D] of the pass's tokens in one layer; keeps their keys and values."""
        ...


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Attends,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers over one batch row: query [1, H, R, D] in, [1, R, H, D] out."""
    rules = rules_of(module, query, arguments)
    return tree.attend(int(module.layer_idx), query[0], key[0], value[0], rules)[None], None  # type: ignore[arg-type]


AttentionInterface.register(TREE_ATTENTION, tree_attention)


def rounded(states: Tensor, kept: torch.dtype) -> Tensor:
    """The states with the values that ``kept`` has, in fp32."""
    return states if kept == states.dtype else states.to(kept).to(states.dtype)


class TreeStore(AttendsApart, Protocol):
    """Keys and values of all prompts and nodes, and attention over them.

    Attributes:
        kept: what keys and values are rounded to as soon as they are made, those of the token at hand too. Products and
            softmax are fp32.
    """

    kept: torch.dtype

    def add_prompts(self, layer: int, first: int, keys_GHPD: Tensor, values_GHPD: Tensor) -> None:
        """Keep equally long prompts, ``first`` and those after it, :func:`rounded` already."""
        ...

    def begin_step(self, rows: Rows) -> None:
        """Note which rows the next forward pass holds; their nodes are in the paths already."""
        ...

    def attend(
        self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, rules: AttentionRules
    ) -> Tensor:
        """See :class:`Attends`."""
        ...


class CompiledStore:
    """A store for the compiled kernel, on the CPU: prompt keys in transposed tiles, head widths of whole vectors.

    Args:
        kernel: see :func:`bgrpo.decoding.compiled.compiled_kernel`.
        paths: which nodes each slot's path has.
        lengths_G: prompt places in use (int64).
        kept: see :class:`TreeStore`; fp32 or bf16.
    """

    def __init__(
        self, kernel: TreeAttentionKernel, paths: ReusingPaths, lengths_G: Tensor, kept: torch.dtype = torch.float32
    ) -> None:
        self.kept = kept
        self._kernel = kernel
        self._paths = paths
        self._lengths_G = lengths_G.to(torch.int32)
        self._empty_G = torch.zeros_like(self._lengths_G)
        self._tiles = -(-int(lengths_G.max()) // TILE)
        self._layers: dict[int, KernelLayer] = {}
        self._biases: dict[int, Tensor] = {}  # of this step, by the identity of what they are made of

    def add_prompts(self, layer: int, first: int, keys_GHPD: Tensor, values_GHPD: Tensor) -> None:
        """See :class:`TreeStore`."""
        groups, _, places, width = keys_GHPD.shape
        kept = self._layer(layer, keys_GHPD)
        kept.prompt_keys[first : first + groups, :, :, :width] = tiles_of(keys_GHPD, self._tiles)
        kept.prompt_values[first : first + groups, :, :places, :width] = values_GHPD

    def begin_step(self, rows: Rows) -> None:
        """See :class:`TreeStore`."""
        groups, slots, _ = self._paths.paths_GKT.shape
        paths_RT = self._paths.paths_GKT.flatten(0, 1)
        if rows.all_live:
            self._paths_RT = paths_RT
            self._first_rows_G = torch.arange(0, groups * slots + 1, slots, dtype=torch.int32)
        else:
            self._paths_RT = paths_RT.index_select(0, rows.flat_R)
            self._first_rows_G = torch.searchsorted(rows.prompt_R, torch.arange(groups + 1)).to(torch.int32)
        self._biases.clear()

    def attend(
        self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, rules: AttentionRules
    ) -> Tensor:
        """See :class:`Attends`."""
        return self._with_nodes(layer, key_HRD).attend(
            query_HRD, key_HRD, value_HRD, self._lengths_G, self._first_rows_G, self._paths_RT, self._paths.depth, rules
        )

    def attend_path(self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, bias_HB: Tensor) -> Tensor:
        """See :class:`bgrpo.decoding.attention_apart.AttendsApart`."""
        if id(bias_HB) not in self._biases:
            self._biases[id(bias_HB)] = bias_of_path(bias_HB, self._paths.depth, self._paths.depth)
        return self._with_nodes(layer, key_HRD, tiles=0).attend(
            query_HRD, key_HRD, value_HRD, self._empty_G, self._first_rows_G, self._paths_RT, self._paths.depth,
            UNSCALED, self._biases[id(bias_HB)],
        )  # fmt: skip

    def attend_prompt(self, layer: int, query_HRD: Tensor) -> Tensor:
        """See :class:`bgrpo.decoding.attention_apart.AttendsApart`."""
        return self._layers[layer].attend(
            query_HRD, query_HRD, query_HRD, self._lengths_G, self._first_rows_G, self._paths_RT, 0, UNSCALED
        )

    def _with_nodes(self, layer: int, like: Tensor, tiles: int | None = None) -> KernelLayer:
        """The layer with room for all nodes."""
        kept = self._layers.get(layer) or self._layer(layer, like, tiles)
        while len(kept.nodes) * self._paths.chunk < self._paths.capacity:
            kept.add_nodes(*(self._room(like, self._paths.chunk) for _ in range(2)))
        return kept

    def _layer(self, layer: int, like: Tensor, tiles: int | None = None) -> KernelLayer:
        if layer not in self._layers:
            tiles = self._tiles if tiles is None else tiles
            keys, values = (self._room(like, tiles * TILE) for _ in range(2))
            # the same memory as tiles: [..., places, width] and [..., tiles, width, TILE] are equally many numbers
            self._layers[layer] = self._kernel.layer(keys.view(*keys.shape[:2], tiles, keys.shape[3], TILE), values)
        return self._layers[layer]

    def _room(self, like: Tensor, places: int) -> Tensor:
        """Room for so many places of each prompt.

        Only what was written is read, so it may hold anything; but zeros where a head's width is filled up.
        """
        heads, used = like.shape[-3], like.shape[-1]
        width = -(-used // LANES) * LANES
        new = like.new_empty if used == width else like.new_zeros
        return new(len(self._lengths_G), heads, places, width, dtype=self.kept)


class TorchStore:
    """A store for PyTorch's attention, on any device: prompt places, then nodes, under a mask. Shapes depend on the
    capacity of the paths only, not on how many rows there are.

    Args:
        paths: which nodes each slot's path has.
        lengths_G: prompt places in use.
        places: P, the most of them.
        kept: see :class:`TreeStore`; the memory is fp32 whatever it is, as PyTorch's attention has one dtype for all.
    """

    def __init__(self, paths: NodePaths, lengths_G: Tensor, places: int, kept: torch.dtype = torch.float32) -> None:
        self.kept = kept
        self._paths = paths
        self._lengths_G = lengths_G
        self._places = places
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[str, int | None], Tensor] = {}  # of this step, by what is seen and by window or bias

    def add_prompts(self, layer: int, first: int, keys_GHPD: Tensor, values_GHPD: Tensor) -> None:
        """See :class:`TreeStore`."""
        groups, _, places, _ = keys_GHPD.shape
        keys, values = self._layer(layer, keys_GHPD, self._places)
        keys[first : first + groups, :, :places] = keys_GHPD
        values[first : first + groups, :, :places] = values_GHPD

    def begin_step(self, rows: Rows) -> None:
        """See :class:`TreeStore`."""
        self._masks.clear()
        self._rows = rows
        self._nodes_R = self._paths.own_nodes(rows)

    def attend(
        self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, rules: AttentionRules
    ) -> Tensor:
        """See :class:`Attends`."""
        keys, values = self._with_own(layer, key_HRD, value_HRD, self._places)
        return self._attended(query_HRD, keys, values, self._mask(rules.window)[:, None], rules)

    def attend_path(self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, bias_HB: Tensor) -> Tensor:
        """See :class:`bgrpo.decoding.attention_apart.AttendsApart`."""
        keys, values = self._with_own(layer, key_HRD, value_HRD, 0)
        return self._attended(query_HRD, keys, values, self._path_mask(bias_HB), UNSCALED)

    def attend_prompt(self, layer: int, query_HRD: Tensor) -> Tensor:
        """See :class:`bgrpo.decoding.attention_apart.AttendsApart`."""
        keys, values = self._layers[layer]
        return self._attended(query_HRD, keys, values, self._prompt_mask()[:, None], UNSCALED)

    def _with_own(self, layer: int, key_HRD: Tensor, value_HRD: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, the rows' own among them: nodes come after so many places of the prompt."""
        keys, values = self._layer(layer, key_HRD, places + self._paths.capacity)
        rows, count = self._rows, len(self._rows.flat_R)
        for states, new_HRD in ((keys, key_HRD), (values, value_HRD)):
            states[rows.prompt_R, :, places + self._nodes_R] = rounded(new_HRD[:, :count].transpose(0, 1), self.kept)
        return keys, values

    def _attended(
        self, query_HRD: Tensor, keys: Tensor, values: Tensor, mask_GHKM: Tensor, rules: AttentionRules
    ) -> Tensor:
        """Outputs [R, H, D] under an additive mask, of one head or of all."""
        rows, count = self._rows, len(self._rows.flat_R)
        (groups, key_heads, _, width), slots, heads = keys.shape, mask_GHKM.shape[2], query_HRD.shape[0]
        shared = heads // key_heads  # query heads of one key-value head become further rows
        query_SHD = query_HRD.new_zeros(groups * slots, heads, width)
        query_SHD[rows.flat_R] = query_HRD[:, :count].transpose(0, 1)
        query_GHSD = query_SHD.view(groups, slots, key_heads, shared, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask_GHSM = mask_GHKM if shared == 1 else mask_GHKM.repeat(1, 1, shared, 1)
        output_GHSD = masked_attention(query_GHSD, keys, values, mask_GHSM, rules)
        output_GHSD = output_GHSD.unflatten(2, (shared, slots)).permute(0, 3, 1, 2, 4)
        output_RHD = query_HRD.new_zeros(query_HRD.shape[1], heads, width)
        output_RHD[:count] = output_GHSD.reshape(groups * slots, heads, width)[rows.flat_R]
        return output_RHD

    def _mask(self, window: int | None) -> Tensor:
        """What each slot sees of its prompt and of its path, [G, K, places + nodes]."""
        if ("all", window) not in self._masks:
            places_P = torch.arange(self._places, device=self._lengths_G.device)
            paths_GKT = self._paths.known_paths()
            seen_GP = places_P < self._lengths_G[:, None]
            of_path_T = torch.zeros(paths_GKT.shape[2], device=self._lengths_G.device)
            if window is not None:
                seen_GP &= places_P >= self._lengths_G[:, None] + self._paths.depth - window
                nodes_T = torch.arange(paths_GKT.shape[2], device=self._lengths_G.device)
                of_path_T.masked_fill_(nodes_T < self._paths.depth - window, HIDDEN)
            mask_GKM = torch.full(
                (*paths_GKT.shape[:2], self._places + self._paths.capacity), HIDDEN, device=self._lengths_G.device
            )
            mask_GKM[..., : self._places].masked_fill_(seen_GP[:, None], 0.0)
            mask_GKM.scatter_(2, self._places + paths_GKT, of_path_T.expand_as(paths_GKT))
            self._masks["all", window] = mask_GKM
        return self._masks["all", window]

    def _path_mask(self, bias_HB: Tensor) -> Tensor:
        """What each slot sees of its path, with the bias of each distance, [G, H, K, nodes]."""
        name = "path", id(bias_HB)
        if name not in self._masks:
            paths_GKT = self._paths.known_paths()
            (groups, slots, steps), heads = paths_GKT.shape, len(bias_HB)
            bias_HT = bias_of_path(bias_HB, self._paths.depth, steps)
            mask_GHKN = torch.full((groups, heads, slots, self._paths.capacity), HIDDEN, device=bias_HB.device)
            nodes_GHKT = paths_GKT[:, None].expand(-1, heads, -1, -1)
            self._masks[name] = mask_GHKN.scatter_(3, nodes_GHKT, bias_HT[None, :, None].expand_as(nodes_GHKT))
        return self._masks[name]

    def _prompt_mask(self) -> Tensor:
        """What each slot sees of its prompt, [G, K, places]."""
        if ("prompt", None) not in self._masks:
            hidden_GP = torch.arange(self._places, device=self._lengths_G.device) >= self._lengths_G[:, None]
            mask_GP = torch.zeros(hidden_GP.shape, device=self._lengths_G.device).masked_fill_(hidden_GP, HIDDEN)
            slots = self._paths.known_paths().shape[1]
            self._masks["prompt", None] = mask_GP[:, None].expand(-1, slots, -1)
        return self._masks["prompt", None]

    def _layer(self, layer: int, like: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Keys and values, with room for so many places and nodes, or more."""
        if layer not in self._layers:
            shape = (len(self._lengths_G), like.shape[-3], size, like.shape[-1])
            self._layers[layer] = like.new_zeros(shape), like.new_zeros(shape)
        keys, values = self._layers[layer]
        if keys.shape[2] < size:
            missing = (0, 0, 0, size - keys.shape[2])
            self._layers[layer] = functional.pad(keys, missing), functional.pad(values, missing)
        return self._layers[layer]
