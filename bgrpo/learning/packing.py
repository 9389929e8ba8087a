"""Log-probabilities of whole groups with every shared token computed once.

Padded rows repeat the prompt for each of the K completions. Here all groups lie in one row, first their prompts, then
their nodes, where the nodes of a group are the trie of its completions: each node attends to the prompt, its ancestors
and itself, and its position is its depth after the prompt. The unmodified Hugging Face model does the rest, with
explicit positions, the attention of :mod:`bgrpo.learning.packed_attention` and the products of
:mod:`bgrpo.learning.matrix_products`.
Log-probabilities and gradients equal those of the separate rows, because a token's logits depend on its ancestors only.

Shape letters: T tokens of the row, S scored places (each group's last prompt token, and the nodes), V vocabulary, B
completions of all groups, C longest completion; those of attention are in :mod:`bgrpo.learning.packed_attention`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bgrpo.learning.forward_pass import ChosenTokens, Scoring
from bgrpo.learning.packed_attention import PACKED_ATTENTION, AttentionLayout

ROUND = 32
"""The row and the scored places are filled up to multiples of this: matrix products like sizes that come again."""


@dataclass(frozen=True, slots=True)
class PackedGroups:
    """Groups ready for one forward pass, and the map from its logits back to completion tokens.

    Attributes:
        input_ids_1T: the prompts of all groups, then the nodes of all groups, then fillers.
        position_ids_1T: 0-based positions, as if each completion stood alone after its prompt.
        layout: who attends to whom.
        scored_S: places in the row whose logits are read, then fillers.
        source_BC: index into ``scored_S`` of the place that predicts this token; 0 where there is none.
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    layout: AttentionLayout
    scored_S: Tensor
    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor

    def logps(self, model: nn.Module, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`packed_logps`."""
        return packed_logps(model, self, scoring)


@dataclass(frozen=True, slots=True)
class Trie:
    """One group's completions as a tree; parents come before their children.

    Attributes:
        tokens: of the nodes.
        depths: of the nodes, 1 right after the prompt.
        owners: for each node, the completion whose path made it.
        paths: for each completion, its nodes from the prompt on.
    """

    tokens: list[int]
    depths: list[int]
    owners: list[int]
    paths: list[list[int]]


def pack_groups(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], device: torch.device | str, rows: int = 0
) -> PackedGroups:
    """Lay out groups, each (prompt, completions), none of them empty.

    The last token of a completion predicts nothing, so it becomes a node only if another completion goes on from it.

    Args:
        groups: token ids.
        device: where the tensors go.
        rows: least number of completion rows B; those beyond the completions are masked out and cost nothing.
    """
    sizes = [len(prompt) for prompt, _ in groups]
    tries = [build_trie(completions) for _, completions in groups]
    ends = np.cumsum(sizes)
    starts = ends[-1] + np.cumsum([0, *(len(trie.tokens) for trie in tries)])  # of each group's nodes, and the end
    tokens = [token for prompt, _ in groups for token in prompt] + [token for trie in tries for token in trie.tokens]
    positions = [place for size in sizes for place in range(size)]
    positions += [size - 1 + depth for size, trie in zip(sizes, tries, strict=True) for depth in trie.depths]
    scored = [*(ends - 1), *range(starts[0], starts[-1])]
    completions = [completion for _, of_group in groups for completion in of_group]
    source_BC, tokens_BC, mask_BC = _scatter_map(completions, tries, starts - ends[-1] + len(groups), rows)
    return PackedGroups(
        input_ids_1T=torch.tensor([rounded_up(tokens)], device=device),
        position_ids_1T=torch.tensor([rounded_up(positions)], device=device),
        layout=_attention_layout(sizes, tries, ends, starts, device),
        scored_S=torch.tensor(rounded_up(scored), device=device),
        source_BC=to_tensor(source_BC, device),
        tokens_BC=to_tensor(tokens_BC, device),
        mask_BC=to_tensor(mask_BC, device),
    )


def packed_logps(model: nn.Module, packed: PackedGroups, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability of every completion token, and the entropy of its distribution, in nats.

    Args:
        model: without dropout; a causal language model that :func:`bgrpo.decoding.support.service_of` gives to the
            tree, or its DDP wrapper.
        packed: the groups.
        scoring: temperature, arithmetic and what is differentiable; default: temperature 1, all in the weights' dtype.

    Returns:
        ``logps_BC`` (differentiable) and ``entropies_BC``, at least fp32, and 0 outside the completions.
    """

    def run() -> Tensor:
        with _packed_attention(model):
            logits_1SV: Tensor = model(
                input_ids=packed.input_ids_1T,
                attention_mask=torch.ones_like(packed.input_ids_1T),  # not read; keeps transformers from warning
                position_ids=packed.position_ids_1T,
                use_cache=False,
                logits_to_keep=packed.scored_S,
                packed_layout=packed.layout,
            ).logits
        return logits_1SV

    chosen = ChosenTokens(packed.source_BC, packed.tokens_BC, packed.mask_BC)
    return (scoring or Scoring()).logps(model, run, lambda logits_1SV: logits_1SV[0], len(packed.scored_S), chosen)


@contextmanager
def _packed_attention(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model's attention is that of packed groups."""
    config: Any = getattr(model, "module", model).config
    before = config._attn_implementation
    config._attn_implementation = PACKED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def build_trie(completions: Sequence[Sequence[int]]) -> Trie:
    """Of one group; the last token of a completion is no node unless another goes on from it."""
    trie = Trie(tokens=[], depths=[], owners=[], paths=[])
    children: dict[tuple[int, int], int] = {}
    for owner, completion in enumerate(completions):
        node, path = -1, []
        for depth, token in enumerate(completion[:-1], start=1):
            child = children.setdefault((node, token), len(trie.tokens))
            if child == len(trie.tokens):
                trie.tokens.append(token)
                trie.depths.append(depth)
                trie.owners.append(owner)
            node = child
            path.append(node)
        trie.paths.append(path)
    return trie


def _attention_layout(
    sizes: Sequence[int],
    tries: Sequence[Trie],
    ends: np.ndarray,
    starts: np.ndarray,
    device: torch.device | str,
) -> AttentionLayout:
    """From the length of each prompt, the tries, where in the row each prompt ends, and where its nodes start."""
    prompt_GP, prompt_slot = padded([np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)])
    nodes = [np.arange(start, end) for start, end in itertools.pairwise(starts)]
    node_GM, node_slot = padded(nodes, ends - 1)
    node_position_GM = np.zeros(node_GM.shape, np.int64)
    for row, size, trie in zip(node_position_GM, sizes, tries, strict=True):
        row[: len(trie.depths)] = size - 1 + np.asarray(trie.depths, np.int64)
    path_RC, path_slot = paths_of(tries, starts)
    return AttentionLayout(
        prompt_GP=to_tensor(prompt_GP, device),
        prompt_valid_GP=to_tensor(np.arange(prompt_GP.shape[1]) < np.array(sizes)[:, None], device),
        node_GM=to_tensor(node_GM, device),
        node_position_GM=to_tensor(node_position_GM, device),
        path_RC=to_tensor(path_RC, device),
        prompt_slot=to_tensor(prompt_slot, device),
        node_slot=to_tensor(node_slot, device),
        path_slot=to_tensor(path_slot, device),
        ragged=len(set(sizes)) > 1,
        longest=max(max(sizes), int(node_position_GM.max(initial=0)) + 1),
    )


def paths_of(tries: Sequence[Trie], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``path_RC`` and ``path_slot`` of :class:`AttentionLayout`; each trie's nodes begin in the row at ``starts``."""
    paths: list[np.ndarray] = []
    owning: list[np.ndarray] = []  # for each node, which path
    for trie, start in zip(tries, starts, strict=False):
        owners = sorted(set(trie.owners))
        owning.append(len(paths) + np.searchsorted(owners, trie.owners))
        paths += [start + np.asarray(trie.paths[owner]) for owner in owners]
    path_RC, _ = padded(paths)
    depths = np.concatenate([np.asarray(trie.depths, np.int64) for trie in tries])
    return path_RC, np.concatenate(owning) * path_RC.shape[1] + depths - 1


def rounded_up(entries: list[int]) -> list[int]:
    """Filled up to a multiple of :data:`ROUND` with its first entry."""
    return entries + entries[:1] * (-len(entries) % ROUND)


def to_tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    """On the device."""
    return torch.from_numpy(array).to(device)


def padded(rows: Sequence[np.ndarray], fills: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unequal length as one array, filled with ``fills`` or their last entries, and the flat place of each."""
    width = max((len(row) for row in rows), default=0)
    padded = np.empty((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
        padded[index, len(row) :] = row[-1] if fills is None else fills[index]
    slots = [index * width + np.arange(len(row)) for index, row in enumerate(rows)]
    return padded, np.concatenate(slots) if slots else np.empty(0, np.int64)


def _scatter_map(
    completions: Sequence[Sequence[int]], tries: Sequence[Trie], first_scored: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``source_BC``, ``tokens_BC``, ``mask_BC``; ``first_scored``: where each group's nodes start in ``scored_S``."""
    paths = [
        np.concatenate(([group], first_scored[group] + np.asarray(path, np.int64)))
        for group, trie in enumerate(tries)
        for path in trie.paths
    ]
    longest = max(len(completion) for completion in completions)
    shape = (max(len(completions), rows), max(2, longest))  # TRL takes a single column for figures of completions
    source_BC, tokens_BC, mask_BC = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, (completion, path) in enumerate(zip(completions, paths, strict=True)):
        source_BC[row, : len(path)] = path
        tokens_BC[row, : len(completion)] = completion
        mask_BC[row, : len(completion)] = True
    return source_BC, tokens_BC, mask_BC
