"""Log-probabilities of whole groups with every shared token computed once.

Padded rows repeat the prompt for each of the K completions. Here a group is one row, ``[prompt | nodes]``, where the
nodes are the trie of its completions: each node attends to the prompt, its ancestors and itself, and its position is
its depth after the prompt. The unmodified Hugging Face model does the rest, with a 4-D mask and explicit positions.
Log-probabilities and gradients equal those of the separate rows, because a token's logits depend on its ancestors only.

Shape letters: G groups, P longest prompt, S most nodes, N = P + S row length, M = S + 1 scored places (the last prompt
token and the nodes), V vocabulary, B completions of all groups, C longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PackedGroups:
    """Groups ready for one forward pass, and the map from its logits back to completion tokens.

    Attributes:
        input_ids_GN: prompts padded on the left, then nodes padded on the right; any token id fills.
        position_ids_GN: 0-based positions, as if each completion stood alone after its prompt.
        allowed_G1NN: True where a query (second last axis) attends to a key (last axis).
        places: M, the trailing places of a row whose logits are read.
        source_BC: flat place (group * M + place) whose logits predict this token; 0 where there is none.
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    input_ids_GN: Tensor
    position_ids_GN: Tensor
    allowed_G1NN: Tensor
    places: int
    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor


@dataclass(frozen=True, slots=True)
class _Trie:
    """One group's completions as a tree; node 0 is the last prompt token, parents come before their children."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    sources: list[list[int]]
    """For each completion, the node whose logits predict each of its tokens."""


def pack_groups(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    pad_token_id: int,
    device: torch.device | str,
    rows: int = 0,
) -> PackedGroups:
    """Lay out groups, each (prompt, completions), none of them empty.

    The last token of a completion predicts nothing, so it becomes a node only if another completion goes on from it.

    Args:
        groups: token ids.
        pad_token_id: fills the input; any id of the vocabulary does.
        device: where the tensors go.
        rows: least number of completion rows B; those beyond the completions are masked out and cost nothing.
    """
    tries = [_build_trie(completions) for _, completions in groups]
    count, prompt_size = len(groups), max(len(prompt) for prompt, _ in groups)
    places = max(len(trie.tokens) for trie in tries)
    input_ids_GN = np.full((count, prompt_size - 1 + places), pad_token_id, np.int64)
    position_ids_GN = np.zeros_like(input_ids_GN)
    valid_GP = np.zeros((count, prompt_size), bool)
    for row, ((prompt, _), trie) in enumerate(zip(groups, tries, strict=True)):
        start, end = prompt_size - len(prompt), prompt_size - 1 + len(trie.tokens)
        input_ids_GN[row, start:prompt_size] = prompt
        input_ids_GN[row, prompt_size:end] = trie.tokens[1:]
        position_ids_GN[row, start:prompt_size] = np.arange(len(prompt))
        position_ids_GN[row, prompt_size:end] = len(prompt) - 1 + np.asarray(trie.depths[1:])
        valid_GP[row, start:] = True
    allowed_GNN = _allowed(valid_GP, tries, places)
    source_BC, tokens_BC, mask_BC = _scatter_map([completions for _, completions in groups], tries, places, rows)
    return PackedGroups(
        input_ids_GN=torch.from_numpy(input_ids_GN).to(device),
        position_ids_GN=torch.from_numpy(position_ids_GN).to(device),
        allowed_G1NN=torch.from_numpy(allowed_GNN[:, None]).to(device),
        places=places,
        source_BC=torch.from_numpy(source_BC).to(device),
        tokens_BC=torch.from_numpy(tokens_BC).to(device),
        mask_BC=torch.from_numpy(mask_BC).to(device),
    )


def packed_logps(model: nn.Module, packed: PackedGroups) -> tuple[Tensor, Tensor]:
    """Log-probability of every completion token at temperature 1, and the entropy of its distribution, in nats.

    Args:
        model: a causal language model of transformers, or its DDP wrapper; its attention must be ``sdpa`` or
            ``eager``, which accept a 4-D mask.

    Returns:
        ``logps_BC`` (differentiable) and ``entropies_BC`` (not), at least fp32, and 0 outside the completions.
    """
    dtype = next(model.parameters()).dtype
    blocked = torch.finfo(dtype).min
    logits_GMV = model(
        input_ids=packed.input_ids_GN,
        attention_mask=torch.zeros_like(packed.allowed_G1NN, dtype=dtype).masked_fill_(~packed.allowed_G1NN, blocked),
        position_ids=packed.position_ids_GN,
        use_cache=False,
        logits_to_keep=packed.places,
    ).logits
    logps_GMV = logits_GMV.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    vocabulary = logps_GMV.shape[-1]
    logps_BC = logps_GMV.reshape(-1)[packed.source_BC * vocabulary + packed.tokens_BC]
    with torch.no_grad():
        entropies_GM = -(logps_GMV.exp() * logps_GMV).sum(-1)
        entropies_BC = entropies_GM.view(-1)[packed.source_BC]
    return logps_BC.masked_fill(~packed.mask_BC, 0.0), entropies_BC.masked_fill(~packed.mask_BC, 0.0)


def _build_trie(completions: Sequence[Sequence[int]]) -> _Trie:
    trie = _Trie(tokens=[-1], parents=[0], depths=[0], sources=[])
    children: dict[tuple[int, int], int] = {}
    for completion in completions:
        node, path = 0, [0]
        for token in completion[:-1]:
            key = (node, token)
            if key not in children:
                children[key] = len(trie.tokens)
                trie.tokens.append(token)
                trie.parents.append(node)
                trie.depths.append(trie.depths[node] + 1)
            node = children[key]
            path.append(node)
        trie.sources.append(path)
    return trie


def _allowed(valid_GP: np.ndarray, tries: Sequence[_Trie], places: int) -> np.ndarray:
    """The mask [G, N, N]: causal over the prompt, and over each node's ancestors and itself."""
    count, prompt_size = valid_GP.shape
    size = prompt_size - 1 + places
    allowed_GNN = np.zeros((count, size, size), bool)
    allowed_GNN[:, :, :prompt_size] = valid_GP[:, None, :]
    allowed_GNN[:, :prompt_size, :prompt_size] &= np.tri(prompt_size, dtype=bool)
    # fillers attend to themselves: a softmax over nothing would be undefined
    allowed_GNN[:, np.arange(size), np.arange(size)] = True
    rows, nodes, parents, depths = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (np.full(len(trie.tokens), row), np.arange(len(trie.tokens)), trie.parents, trie.depths)
                for row, trie in enumerate(tries)
            ),
            strict=True,
        )
    )
    for depth in range(1, int(depths.max()) + 1):
        here = depths == depth
        row, node, parent = rows[here], prompt_size - 1 + nodes[here], prompt_size - 1 + parents[here]
        allowed_GNN[row, node] |= allowed_GNN[row, parent]
    return allowed_GNN


def _scatter_map(
    completions: Sequence[Sequence[Sequence[int]]], tries: Sequence[_Trie], places: int, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = [completion for group in completions for completion in group]
    paths = [[row * places + node for node in path] for row, trie in enumerate(tries) for path in trie.sources]
    shape = (max(len(flat), rows), max(len(completion) for completion in flat))
    source_BC, tokens_BC, mask_BC = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, (completion, path) in enumerate(zip(flat, paths, strict=True)):
        source_BC[row, : len(path)] = path
        tokens_BC[row, : len(completion)] = completion
        mask_BC[row, : len(completion)] = True
    return source_BC, tokens_BC, mask_BC
