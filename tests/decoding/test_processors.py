"""Decoding on processors that have less than this one: fewer kinds of matrix products, narrower vectors."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding.rounded_models import rounded_to_bf16
from decoding.test_compiled import needs_kernel
from decoding.tiny_models import tiny_model
from reference.beam_oracle import beam_search, next_logprobs
from torch.nn import functional

from bgrpo.decoding import compiled, fast_layers
from bgrpo.decoding.compiled import TreeAttentionKernel
from bgrpo.decoding.fast_layers import matrix_product
from bgrpo.decoding.onednn import onednn_multiplies

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
X86 = platform.machine() in ("x86_64", "AMD64")
PROCESSORS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
CROSS_COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64 are hidden")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_bf16_decodes_without_bf16_products(processor: str) -> None:
    """A process whose oneDNN has none finds the beams of a brute force with the same values rounded."""
    kind, prompt, width, steps, eos = "gpt2", [4, 4, 7, 3, 6], 4, 5, 2
    completed = subprocess.run(
        [sys.executable, "-m", "decoding.decode_elsewhere", json.dumps([kind, prompt, width, steps, eos])],
        env=os.environ | PROCESSORS[processor] | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(TESTS)])},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(completed.stdout)
    assert found["multiplies"] == {"float32": True, "bfloat16": False}
    assert found["doctor"] == "bf16 computes in fp32 arithmetic here: same rounding, no faster"
    after = next_logprobs(rounded_to_bf16(tiny_model(kind, vocabulary=9, seed=7)), prompt)
    expected = beam_search(after, width, steps, eos)
    assert len(found["scores"]) == width
    for tokens, score in found["scores"]:
        exact = sum(after(tuple(tokens[:place]))[token] for place, token in enumerate(tokens))
        assert score == pytest.approx(exact, abs=0.01 * len(tokens))  # a value at the edge may round either way
    assert expected.margin > 0.1 and {tuple(tokens) for tokens, _ in found["scores"]} == expected.scores.keys()


@pytest.mark.parametrize("products", [None, "fp32", "no"])
@pytest.mark.parametrize("then_gelu", [False, True])
def test_bf16_rounds_inputs_weights_and_results_only(
    then_gelu: bool, products: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of multiplying gives the exact result rounded once; half of a unit in the last of 8 bits is 2^-9."""
    if then_gelu and (products == "no" or not onednn_multiplies(torch.float32)):
        pytest.skip("the GELU is part of oneDNN's products only")
    if products is not None:
        offered = [torch.float32] if products == "fp32" else []
        monkeypatch.setattr(fast_layers, "onednn_multiplies", offered.__contains__)
    draw = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(shape, generator=draw) for shape in ((700, 64), (48, 64), (48,)))
    found = matrix_product(weight, bias, "bf16", then_gelu)(inputs)
    exact = functional.linear(*(values.bfloat16().double() for values in (inputs, weight, bias)))
    if then_gelu:
        exact = functional.gelu(exact, approximate="tanh")
    assert found.dtype == (torch.bfloat16 if then_gelu else torch.float32)
    assert torch.equal(found, found.bfloat16().to(found.dtype))
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def _refuse(*_: Any) -> torch.Tensor:
    raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ({}, False),
        ({"_reorder_linear_weight": _refuse, "_linear_pointwise": _refuse}, False),
        ({"_reorder_linear_weight": lambda weight, _: weight, "_linear_pointwise": _refuse}, False),
        ({"_reorder_linear_weight": lambda weight, _: weight, "_linear_pointwise": lambda x, w, *_: x @ w.T}, True),
        (
            {"_reorder_linear_weight": lambda weight, _: weight, "_linear_pointwise": lambda x, w, *_: x @ w.T + 1},
            False,
        ),
    ],
    ids=["no such operation", "packing fails", "multiplying fails", "right", "wrong"],
)
def test_onednn_multiplies_what_it_was_seen_to_multiply(
    operations: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**operations))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn_multiplies.__wrapped__(torch.bfloat16) is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn_multiplies.__wrapped__(torch.bfloat16) is False


@needs_kernel
@pytest.mark.skipif(not X86, reason="compiled for instruction sets of x86-64")
@pytest.mark.parametrize(
    ("target", "feature"), [("x86-64", "sse2"), ("x86-64-v3", "avx2"), ("x86-64-v4", "avx512vl")], ids=lambda name: name
)
def test_the_kernel_is_right_with_narrower_vectors(
    target: str, feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for less than this processor, it passes the check in fp32 and bf16."""
    if f" {feature} " not in f" {compiled._instruction_set()} ":
        pytest.skip(f"this processor has no {feature}")
    flags = [{"-march=native": f"-march={target}", "-O3": "-O1"}.get(flag, flag) for flag in compiled.FLAGS]
    monkeypatch.setattr(compiled, "FLAGS", flags)  # -O1: a quarter of the time, the same instructions
    compiled._build(tmp_path / "kernel.so")
    compiled._check(TreeAttentionKernel(tmp_path / "kernel.so"))


@pytest.mark.skipif(shutil.which(CROSS_COMPILER) is None, reason=f"no {CROSS_COMPILER}")
def test_the_kernel_compiles_for_aarch64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [{"-march=native": "-march=armv8-a", "-O3": "-O1"}.get(flag, flag) for flag in compiled.FLAGS]
    monkeypatch.setattr(compiled, "FLAGS", flags)
    monkeypatch.setenv("CXX", CROSS_COMPILER)
    compiled._build(tmp_path / "kernel.so")
    machine = int.from_bytes((tmp_path / "kernel.so").read_bytes()[18:20], "little")
    assert machine == 183, "the ELF header's number of aarch64"
