"""The tree's bookkeeping against plain Python trees: which keys a row attends to, whatever was dropped meanwhile."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgrpo.decoding.tree_cache import TreeCache

PROMPTS = [3, 0, 2]
LAYERS, HEADS, WIDTH = 2, 2, 3


def states(labels_GN: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values that tell which prompt token or node, layer and head they belong to."""
    keys = labels_GN[:, None, :, None] * 100.0 + torch.arange(HEADS)[:, None, None] * 10 + layer
    keys = keys.expand(-1, -1, -1, WIDTH).contiguous()
    return keys, -keys


def seen_by(mask_1N: Tensor, keys_HND: Tensor, layer: int) -> set[int]:
    """Labels of the keys that a row attends to, checked to be the right layer's and head's."""
    labels = {int(value) for value in keys_HND[0, mask_1N == 0, 0].sub(layer).div(100)}
    for head in range(HEADS):
        found = {round(float(value)) for value in keys_HND[head, mask_1N == 0].flatten()}
        assert found == {label * 100 + head * 10 + layer for label in labels}
    return labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 12), st.integers(1, 20))
def test_rows_attend_to_prompt_and_ancestors(data: st.DataObject, rows: int, steps: int, headroom: int) -> None:
    places = max(PROMPTS)
    valid_GP = torch.arange(places) < torch.tensor(PROMPTS)[:, None]
    cache = TreeCache(LAYERS, headroom, valid_GP, torch.float32)
    labels_GP = torch.arange(1.0, places + 1).expand(len(PROMPTS), -1)
    for layer in range(LAYERS):
        cache.update(*states(labels_GP, layer), layer)
    assert cache.get_seq_length() == places

    prompts = list(range(len(PROMPTS)))
    label = places
    lineages = {prompt: [set(range(1, PROMPTS[prompt] + 1))] for prompt in prompts}
    for step in range(steps):
        width = rows if step else 1
        previous = len(lineages[prompts[0]])
        if step:
            living = [[row for row in range(previous) if -1 not in lineages[prompt][row]] for prompt in prompts]
            parents = [[data.draw(st.sampled_from(choice)) for _ in range(width)] for choice in living]
            cache.descend(torch.tensor(parents))
            for prompt, row in zip(prompts, parents, strict=True):
                lineages[prompt] = [set(lineages[prompt][parent]) for parent in row]
            if data.draw(st.booleans()):
                live = torch.tensor([[data.draw(st.booleans()) for _ in range(width)] for _ in prompts])
                live[:, 0] = True
                keep = data.draw(st.none() | st.sets(st.integers(0, len(prompts) - 1), min_size=1).map(sorted))
                cache.compact(live, None if keep is None else torch.tensor(keep))
                kept = range(len(prompts)) if keep is None else keep
                needed = [set().union(*_live(lineages[prompts[i]], live[i])) - set(range(1, places + 1)) for i in kept]
                assert cache.get_seq_length() == places + max(map(len, needed))
                for i in kept:  # what a dead row attends to no longer matters
                    for row in (~live[i]).nonzero().flatten().tolist():
                        lineages[prompts[i]][row] = {-1}
                prompts = [prompts[i] for i in kept]
        new_GS = label + 1 + torch.arange(float(len(prompts) * width)).view(len(prompts), width)
        label += len(prompts) * width
        mask = cache.add_nodes(width)
        for layer in range(LAYERS):
            keys, values = cache.update(*states(new_GS, layer), layer)
            assert mask.shape == (len(prompts), 1, width, keys.shape[2])
            for i, prompt in enumerate(prompts):
                for row in range(width):
                    if -1 in lineages[prompt][row]:
                        continue
                    expected = lineages[prompt][row] | {int(new_GS[i, row])}
                    assert seen_by(mask[i, 0, row], keys[i], layer) == expected
                    assert seen_by(mask[i, 0, row], -values[i], layer) == expected
        for i, prompt in enumerate(prompts):
            for row in range(width):
                lineages[prompt][row].add(int(new_GS[i, row]))


def _live(lineages: list[set[int]], live_S: Tensor) -> list[set[int]]:
    return [lineage for lineage, live in zip(lineages, live_S.tolist(), strict=True) if live]
