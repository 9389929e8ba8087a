"""The floor's arithmetic, counted by hand and by torch's own counter, and how its products are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bgrpo.bench.rollouts import decode_floor as floor
from bgrpo.bench.rollouts.cases import EXTRA_CASES, SHAPES
from bgrpo.bench.rollouts.decode_floor import FloorProbe, Multiply, count_operations
from bgrpo.bench.rollouts.decode_workload import random_model
from bgrpo.bench.turns import Turn

CASE = EXTRA_CASES["tiny-2x4"]  # 2 layers of width 32; 2 prompts of 12 tokens, 4 beams, 6 new tokens
LAYER = [(32, 96), (32, 32), (32, 128), (128, 32)]


def test_operations_counted_by_hand() -> None:
    work = count_operations(random_model(SHAPES["tiny"]), CASE)
    assert list(work.matrices) == LAYER * 2
    assert work.head == (32, 19)
    assert (work.prefill_rows, work.step_rows, work.steps, work.head_rows) == (24, 8, 5, 2)
    assert work.matrix_flops == 2 * (24 + 5 * 8) * 2 * 12 * 32 * 32
    seen_in_prefill, seen_in_steps = 2 * (12 * 13 // 2), 8 * (13 + 14 + 15 + 16 + 17)
    assert work.attention_flops == 2 * 2 * 32 * 2 * (seen_in_prefill + seen_in_steps)


def test_matrix_operations_agree_with_torchs_counter() -> None:
    model = random_model(SHAPES["tiny"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.base_model(torch.zeros(2, 12, dtype=torch.long))
        for _ in range(5):
            model.base_model(torch.zeros(8, 1, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    assert count_operations(model, CASE).matrix_flops == counted


def test_no_floor_where_completions_end() -> None:
    with pytest.raises(ValueError, match="end by themselves"):
        count_operations(random_model(SHAPES["tiny"]), replace(CASE, prompt_tokens=None))


def test_turn_adds_up_prefill_steps_heads_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    work = count_operations(random_model(SHAPES["tiny"]), CASE)
    probe = FloorProbe(work, "fp32")
    for name, seconds in (("_prefill", 3.0), ("_step", 0.5), ("_first_head", 0.01), ("_head", 0.002)):
        monkeypatch.setattr(getattr(probe, name), "turn", lambda seconds=seconds: Turn(seconds, seconds / 2))
    matrices = 3.0 + 5 * 0.5
    expected = matrices * (1 + work.attention_flops / work.matrix_flops) + 0.01 + 5 * 0.002
    assert probe.turn().seconds == pytest.approx(expected)
    assert probe.turn().cpu_seconds == pytest.approx(expected / 2)


@pytest.mark.parametrize("offered", [None, [torch.float32], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_computes_the_product(
    dtype: torch.dtype, offered: list[torch.dtype] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this processor, and of one where oneDNN has fp32 products only, or none."""
    if offered is not None:
        monkeypatch.setattr(floor, "onednn_multiplies", offered.__contains__)
    x, weight = torch.randn(5, 16, dtype=dtype), torch.randn(16, 24, dtype=dtype)
    for way in floor._ways(dtype):
        result = way(weight, 5)(x)
        torch.testing.assert_close(result.double(), x.double() @ weight.double(), rtol=2e-2, atol=5e-2)


def test_the_fastest_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the median, the first time aside: the clock is made up."""
    seconds = {
        "first": iter([0.01, 0.3, 0.3, 0.3]),
        "fast": iter([0.9, 0.2, 0.7, 0.2]),
        "last": iter([0.01, 0.1, 0.4, 0.4]),
    }

    def way(name: str) -> floor.Way:
        return lambda weight, rows: lambda x: weight.new_tensor(next(seconds[name]))

    def made_up(call: Callable[[], Tensor]) -> Turn:
        return Turn(float(call()), 0.0)

    monkeypatch.setattr(floor, "timed", made_up)
    ways = [way(name) for name in seconds]
    assert floor._fastest_way(4, 8, 8, torch.float32, ways) is ways[1]


def test_a_turn_runs_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers' once per prefill and per pass of a step, the head's once each."""
    counted = Counter[torch.dtype]()

    def counting(weight: Tensor, rows: int) -> Multiply:
        def multiply(x: Tensor) -> Tensor:
            counted[x.dtype] += 1
            return x @ weight

        return multiply

    monkeypatch.setattr(floor, "_ways", lambda dtype: [counting])
    probe = FloorProbe(count_operations(random_model(SHAPES["tiny"]), CASE), "bf16")
    counted.clear()
    probe.turn()
    layers = len(count_operations(random_model(SHAPES["tiny"]), CASE).matrices)
    assert counted == {torch.bfloat16: (1 + floor._PASSES) * layers, torch.float32: 2}
