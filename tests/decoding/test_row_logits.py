"""The best tokens of every row, found block by block, against a plain log-softmax in fp64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.decoding.slots import Head, RowLogits


def cut(logits_RV: torch.Tensor, sizes: list[int]) -> RowLogits:
    """The given logits in blocks, as a head makes them; two fillers follow the rows."""
    blocks = [
        (lambda hidden, part=part: torch.cat([part, torch.full((2, part.shape[1]), 99.0)])[: len(hidden)])
        for part in logits_RV.split(sizes, 1)
    ]
    return RowLogits(torch.zeros(len(logits_RV) + 2, 1), Head(tuple(blocks), logits_RV.shape[1]))


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.sampled_from([1, 3, 16, 100, 512, 1024]), min_size=1, max_size=5),
    count=st.integers(1, 20),
    rows=st.integers(1, 4),
    spread=st.sampled_from([0.01, 1.0, 40.0]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_best_are_those_of_a_plain_log_softmax(
    seed: int, sizes: list[int], count: int, rows: int, spread: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(rows, sum(sizes), generator=draw) * spread
    count = min(count, sum(sizes))
    expected, tokens = logits_RV.double().log_softmax(-1).topk(count, dim=-1)
    found, places = cut(logits_RV, sizes).best(count, rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-6 * spread + 2e-6, rtol=1e-6)
    assert torch.equal(places, tokens), "fp32 values drawn at random have no ties worth the name"


def test_impossible_tokens_may_fill_a_whole_block() -> None:
    logits = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    for block in (slice(0, 16), slice(16, 32), slice(32, 48)):
        partly = logits.clone()
        partly[:, block] = -torch.inf
        found, places = cut(partly, [16, 16, 16]).best(5, 2)
        expected, tokens = partly.double().log_softmax(-1).topk(5, dim=-1)
        torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)
        assert torch.equal(places, tokens)


def test_numbers_that_are_none_are_not_hidden() -> None:
    logits = torch.zeros(2, 2048)
    logits[1, 1999] = torch.nan
    found, _ = cut(logits, [1024, 1024]).best(3, 2)
    assert not found[0].isnan().any()
    assert found[1].isnan().all()
