"""Who descends from whom against plain Python trees, and how few nodes are kept."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgrpo.decoding.paths import FixedPaths, ReusingPaths
from bgrpo.decoding.slots import Rows, Slots

PROMPTS = 3


def slots_of(live_GK: Tensor) -> Slots:
    zeros = torch.zeros_like(live_GK, dtype=torch.long)
    return Slots(zeros, zeros, zeros.float(), zeros.double(), live_GK)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 30))
def test_nodes_of_live_paths_are_never_given_away(data: st.DataObject, width: int, steps: int) -> None:
    """Each node is labelled with the token it holds; a live slot must read its own history there."""
    paths = ReusingPaths(PROMPTS, width, steps, torch.device("cpu"))
    held: list[dict[int, int]] = [{} for _ in range(PROMPTS)]  # what was written to each node last
    histories: list[list[list[int]]] = [[[] for _ in range(width)] for _ in range(PROMPTS)]
    live_GK = torch.zeros(PROMPTS, width, dtype=torch.bool)
    live_GK[:, 0] = True
    token = 0
    for _ in range(steps):
        rows = Rows.live(slots_of(live_GK))
        paths.add(rows, slots_of(live_GK))
        for prompt, slot, node in zip(
            rows.prompt_R.tolist(), rows.slot_R.tolist(), paths.own_nodes(rows).tolist(), strict=True
        ):
            assert 0 <= node < paths.capacity
            token += 1
            held[prompt][node] = token
            histories[prompt][slot] = [*histories[prompt][slot], token]
        known = paths.known_paths()
        for prompt, slot in zip(rows.prompt_R.tolist(), rows.slot_R.tolist(), strict=True):
            assert [held[prompt][node] for node in known[prompt, slot].tolist()] == histories[prompt][slot]
        parents = [
            [data.draw(st.sampled_from(of.nonzero().flatten().tolist() or [0])) for _ in range(width)] for of in live_GK
        ]
        histories = [[histories[g][parent] for parent in of] for g, of in enumerate(parents)]
        paths.descend(torch.tensor(parents))
        ended_GK = ~live_GK.any(1, keepdim=True)
        live_GK = torch.tensor([[data.draw(st.booleans()) for _ in range(width)] for _ in parents]) & ~ended_GK
        if not live_GK.any():
            break
    assert paths.capacity <= max(8, steps + 8) * width


def test_room_follows_what_is_needed() -> None:
    """Slots that all go on from one parent need a single path, so a long search stays within the first allocation."""
    paths = ReusingPaths(2, 5, 200, torch.device("cpu"))
    first = paths.capacity
    everyone = torch.ones(2, 5, dtype=torch.bool)
    for _ in range(12):
        paths.add(Rows.live(slots_of(everyone)), slots_of(everyone))
        paths.descend(torch.zeros(2, 5, dtype=torch.long))
    assert paths.capacity == first < 12 * 5
    for _ in range(12):  # independent slots need all their nodes
        paths.add(Rows.live(slots_of(everyone)), slots_of(everyone))
        paths.descend(torch.arange(5).expand(2, -1))
    assert paths.capacity >= 12 * 5


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 9))
def test_fixed_paths_name_exactly_the_ancestors(data: st.DataObject, width: int, steps: int) -> None:
    paths = FixedPaths(PROMPTS, width, steps, torch.device("cpu"))
    rows = Rows.of(torch.arange(PROMPTS * width), width)
    memory = paths.known_paths().data_ptr()
    ancestors = [[set() for _ in range(width)] for _ in range(PROMPTS)]
    for step in range(steps):
        paths.add(torch.tensor(step))
        own = paths.own_nodes(rows).view(PROMPTS, width).tolist()
        for g in range(PROMPTS):
            for k in range(width):
                ancestors[g][k] = {*ancestors[g][k], own[g][k]}
                assert set(paths.known_paths()[g, k].tolist()) == ancestors[g][k]
        parents = [[data.draw(st.integers(0, width - 1)) for _ in range(width)] for _ in range(PROMPTS)]
        ancestors = [[ancestors[g][parent] for parent in of] for g, of in enumerate(parents)]
        paths.descend(torch.tensor(parents))
        assert paths.known_paths().data_ptr() == memory
