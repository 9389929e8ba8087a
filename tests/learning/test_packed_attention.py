from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.decoding.attention_rules import AttentionRules
from bgrpo.learning.packed_attention import _forward, attend_written_out, packed_attention_forward
from bgrpo.learning.packing import PackedGroups, pack_groups

HEADS, WIDTH = 2, 4

Groups = list[tuple[list[int], list[list[int]]]]

tokens = st.integers(0, 3)  # few, so that beginnings are shared
completions = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=6)
groups_of_any_shape = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=7), completions), min_size=1, max_size=4)


def allowed(groups: Groups, window: int = 100) -> torch.Tensor:
    """Who may attend to whom, from the tokens alone: two nodes are one when group and path are the same."""
    places: list[tuple[int, bool, tuple[int, ...]]] = []
    for g, (prompt, _) in enumerate(groups):
        places += [(g, False, tuple(prompt[: end + 1])) for end in range(len(prompt))]
    for g, (_, of_group) in enumerate(groups):
        paths = dict.fromkeys(tuple(one[:end]) for one in of_group for end in range(1, len(one)))
        places += [(g, True, path) for path in paths]

    def position(place: tuple[int, bool, tuple[int, ...]]) -> int:
        return len(place[2]) + (len(groups[place[0]][0]) if place[1] else 0)

    def attends(query: tuple[int, bool, tuple[int, ...]], key: tuple[int, bool, tuple[int, ...]]) -> bool:
        if position(query) - position(key) >= window:
            return False
        if query[0] != key[0]:
            return False
        if query[1] != key[1]:
            return query[1]
        return query[2][: len(key[2])] == key[2]

    return torch.tensor([[attends(query, key) for key in places] for query in places])


def random_rows(packed: PackedGroups, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(packed.layout.prompt_slot) + len(packed.layout.node_slot), HEADS, WIDTH)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * 3 for _ in range(3)]


def masked_attention(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, mask: torch.Tensor, cap: float | None = None
) -> torch.Tensor:
    scores_HTT = torch.einsum("qhd,khd->hqk", q_THD, k_THD) * WIDTH**-0.5
    if cap:
        scores_HTT = cap * torch.tanh(scores_HTT / cap)
    weights_HTT = scores_HTT.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights_HTT, v_THD)


def attend(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, packed: PackedGroups, **arguments: float | None
) -> torch.Tensor:
    q, k, v = (rows.transpose(0, 1)[None] for rows in (q_THD, k_THD, v_THD))
    return packed_attention_forward(SimpleNamespace(), q, k, v, None, packed_layout=packed.layout, **arguments)[0][0]


def gradients(out: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((out * weights.to(out.dtype)).sum(), rows))


@settings(max_examples=60, deadline=None)
@given(groups_of_any_shape, st.integers(1, 14), st.sampled_from([None, 2.0]))
def test_equals_masked_attention_and_its_gradient(groups: Groups, window: int, cap: float | None) -> None:
    packed = pack_groups(groups, "cpu")
    rows = [row.requires_grad_() for row in random_rows(packed)]
    expected = masked_attention(*rows, allowed(groups, window), cap)
    out = attend(*rows, packed, sliding_window=window, softcap=cap)
    assert torch.allclose(out, expected, atol=1e-10)
    for gradient, wanted in zip(gradients(out, rows), gradients(expected, rows), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(groups_of_any_shape, st.integers(1, 14))
def test_the_form_for_other_devices_equals_it_too(groups: Groups, window: int) -> None:
    packed = pack_groups(groups, "cpu")
    rows = [row.requires_grad_() for row in random_rows(packed)]
    expected = masked_attention(*rows, allowed(groups, window))
    rules = AttentionRules(WIDTH**-0.5, window).within(packed.layout.longest)
    out, _ = _forward(*rows, packed.layout, rules, attend_written_out)
    assert torch.allclose(out, expected, atol=1e-10)
    for gradient, wanted in zip(gradients(out, rows), gradients(expected, rows), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-9)


def test_scores_far_apart_do_not_overflow() -> None:
    """A node whose own path outweighs its prompt by e^1000, and the reverse."""
    packed = pack_groups([([0, 1], [[2, 3, 1], [2, 0, 1]]), ([0], [[1, 1]])], "cpu")
    rows = random_rows(packed, torch.float32)
    rows[1] = rows[1] * torch.linspace(-200, 200, len(rows[1]))[:, None, None]
    rows = [row.requires_grad_() for row in rows]
    mask = allowed([([0, 1], [[2, 3, 1], [2, 0, 1]]), ([0], [[1, 1]])])
    out, expected = attend(*rows, packed), masked_attention(*rows, mask)
    assert torch.allclose(out, expected, atol=1e-4)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(out, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    rng = random.Random(0)
    groups = [
        ([rng.randrange(9) for _ in range(5 + g)], [[rng.randrange(9) for _ in range(6)] for _ in range(4)])
        for g in range(2)
    ]
    packed = pack_groups(groups, "cpu")
    rows = [row.requires_grad_() for row in random_rows(packed, dtype)]
    out = attend(*rows, packed)
    exact = masked_attention(*(row.double() for row in rows), allowed(groups))
    assert out.dtype == dtype and all(gradient.dtype == dtype for gradient in gradients(out, rows))
    assert torch.allclose(out.double(), exact, atol=1e-5 if dtype == torch.float32 else 5e-2)


def test_dropout_is_refused() -> None:
    packed = pack_groups([([0], [[1, 2]])], "cpu")
    q, k, v = (rows.transpose(0, 1)[None] for rows in random_rows(packed))
    with pytest.raises(RuntimeError, match=r"attention drops 0\.1: switch its dropout off"):
        packed_attention_forward(SimpleNamespace(), q, k, v, None, packed_layout=packed.layout, dropout=0.1)
