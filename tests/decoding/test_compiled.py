"""The compiled kernel: right for every shape, refused when it is wrong, and never needed."""

from __future__ import annotations

import logging
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from decoding.engines import torch_engine, why_no_kernel
from decoding.tiny_models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgrpo.decoding import DecodeEngine, DecodeSettings, compiled
from bgrpo.decoding.attention_rules import AttentionRules
from bgrpo.decoding.compiled import KernelUnavailable, load_kernel
from bgrpo.decoding.paths import ReusingPaths
from bgrpo.decoding.slots import Rows, Slots
from bgrpo.decoding.tree_attention import CompiledStore, TorchStore, TreeStore, rounded

REASON = why_no_kernel()
needs_kernel = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernel: {REASON}")


@needs_kernel
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    width=st.integers(1, 35),
    shared=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    head_width=st.sampled_from([1, 8, 16, 24, 32, 48, 64, 80, 128]),
    steps=st.integers(1, 20),
    sharpness=st.sampled_from([0.1, 1.0, 8.0]),
    threads=st.sampled_from([1, 2]),
    window=st.none() | st.integers(1, 150),
    cap=st.sampled_from([None, 0.5, 30.0]),
    kept=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_masked_attention(
    seed: int,
    lengths: list[int],
    width: int,
    shared: int,
    key_heads: int,
    head_width: int,
    steps: int,
    sharpness: float,
    threads: int,
    kept: torch.dtype,
    window: int | None,
    cap: float | None,
) -> None:
    """Both stores see the same random prompts and the same random search; every step's outputs must agree."""
    draw = torch.Generator().manual_seed(seed)
    lengths_G = torch.tensor(lengths)
    paths = ReusingPaths(len(lengths), width, steps, torch.device("cpu"))
    stores = [CompiledStore(load_kernel(), paths, lengths_G, kept), TorchStore(paths, lengths_G, max(lengths), kept)]
    for g, length in enumerate(lengths):
        if length:
            keys, values = rounded(torch.randn(2, 1, key_heads, length, head_width, generator=draw), kept)
            for store in stores:
                store.add_prompts(0, g, keys, values)
    rules = AttentionRules(sharpness / head_width**0.5, window, cap)
    live_GK = torch.zeros(len(lengths), width, dtype=torch.bool)
    live_GK[:, 0] = True
    for _ in range(steps):
        slots = slots_of(live_GK)
        rows = Rows.live(slots)
        paths.add(rows, slots)
        count = len(rows.flat_R) + int(torch.randint(0, 3, (), generator=draw))  # fillers
        query = torch.randn(count, key_heads * shared, head_width, generator=draw).transpose(0, 1)
        key, value = torch.randn(2, key_heads, count, head_width, generator=draw)
        for store in stores:
            store.begin_step(rows)
        found, expected = (attend_with(threads, store, query, key, value, rules) for store in stores)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
        order_GK = torch.rand(live_GK.shape, generator=draw) + live_GK  # live slots are the largest
        paths.descend(order_GK.argmax(1, keepdim=True).expand(-1, width))
        live_GK = (torch.rand(live_GK.shape, generator=draw) < 0.8) & live_GK.any(1, keepdim=True)
        if not live_GK.any():
            break


@needs_kernel
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    width=st.integers(1, 35),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([8, 24, 64]),
    steps=st.integers(1, 20),
    distances=st.integers(1, 30),
    kept=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_path_and_prompt_apart_equal_masked_attention(
    seed: int,
    lengths: list[int],
    width: int,
    heads: int,
    head_width: int,
    steps: int,
    distances: int,
    kept: torch.dtype,
) -> None:
    """As a decoder beside an encoder attends: to the path with a bias, and to the prompt."""
    draw = torch.Generator().manual_seed(seed)
    lengths_G = torch.tensor(lengths)
    paths = ReusingPaths(len(lengths), width, steps, torch.device("cpu"))
    stores = [CompiledStore(load_kernel(), paths, lengths_G, kept), TorchStore(paths, lengths_G, max(lengths), kept)]
    for g, length in enumerate(lengths):
        keys, values = rounded(torch.randn(2, 1, heads, length, head_width, generator=draw), kept)
        for store in stores:
            store.add_prompts(1, g, keys, values)
    bias_HB = torch.randn(heads, distances, generator=draw)
    live_GK = torch.zeros(len(lengths), width, dtype=torch.bool)
    live_GK[:, 0] = True
    for _ in range(steps):
        slots = slots_of(live_GK)
        rows = Rows.live(slots)
        paths.add(rows, slots)
        query, key, value = torch.randn(3, heads, len(rows.flat_R) + 2, head_width, generator=draw)  # 2 fillers
        found = []
        for store in stores:
            store.begin_step(rows)
            found.append((store.attend_path(0, query, key, value, bias_HB), store.attend_prompt(1, query)))
        torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=2e-5)
        order_GK = torch.rand(live_GK.shape, generator=draw) + live_GK
        paths.descend(order_GK.argmax(1, keepdim=True).expand(-1, width))
        live_GK = (torch.rand(live_GK.shape, generator=draw) < 0.8) & live_GK.any(1, keepdim=True)
        if not live_GK.any():
            break


def slots_of(live_GK: Tensor) -> Slots:
    zeros = torch.zeros_like(live_GK, dtype=torch.long)
    return Slots(zeros, zeros, zeros.float(), zeros.double(), live_GK)


def attend_with(
    threads: int, store: TreeStore, query: Tensor, key: Tensor, value: Tensor, rules: AttentionRules
) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return store.attend(0, query, key, value, rules)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bgrpo" / "kernels"


@needs_kernel
def test_is_built_once_for_this_processor(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without optimisation: the same code in a fraction of the time; the other tests use the optimised library.
    monkeypatch.setattr(compiled, "FLAGS", tuple("-O0" if flag.startswith("-O") else flag for flag in compiled.FLAGS))
    load_kernel()
    built = list(empty_cache.iterdir())
    assert len(built) == 1 and built[0].suffix == ".so"
    monkeypatch.setenv("CXX", "false")
    load_kernel()
    monkeypatch.setattr(compiled, "_instruction_set", lambda: "another processor")
    with pytest.raises(KernelUnavailable, match="false failed"):
        load_kernel()


def test_without_a_compiler_decoding_goes_on_and_says_so(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, request = tiny_model(vocabulary=9, seed=1), DecodeSettings("beam", 5, 6, 2, 0)
    expected = torch_engine(model).decode([[1, 3, 4]], request)[0]
    monkeypatch.setenv("PATH", str(empty_cache))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelUnavailable, match="no C\\+\\+ compiler"):
        load_kernel()
    compiled.compiled_kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [DecodeEngine(model).decode([[1, 3, 4]], request)[0] for _ in range(2)][1]
    finally:
        compiled.compiled_kernel.cache_clear()
    assert [record.message for record in caplog.records if "slower" in record.message] == [
        "decoding uses PyTorch's attention, which is slower: there is no C++ compiler (c++, g++ or clang++)"
    ]
    assert [c.tokens for c in found.completions] == [c.tokens for c in expected.completions]
    assert [c.logprob for c in found.completions] == pytest.approx([c.logprob for c in expected.completions], abs=1e-5)


@needs_kernel
@pytest.mark.parametrize(("content", "reason"), [("wrong", "check failed"), ("none", "cannot be loaded")])
def test_a_library_with_wrong_results_is_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, content: str, reason: str
) -> None:
    monkeypatch.setattr(compiled, "_identity", lambda: content)
    empty_cache.mkdir(parents=True, mode=0o700)
    library = empty_cache / f"tree_attention-{content}.so"
    library.write_bytes(b"not a library")
    if content == "wrong":
        source = empty_cache / "wrong.cpp"
        source.write_text('extern "C" void bgrpo_tree_attention(const void*) {}')
        subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    with pytest.raises(KernelUnavailable, match=reason):
        load_kernel()


def test_a_cache_that_others_can_write_is_not_trusted(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    empty_cache.chmod(0o777)
    with pytest.raises(KernelUnavailable, match="written by other users"):
        load_kernel()


@needs_kernel
def test_numbers_that_are_not_numbers_stay_visible() -> None:
    """A NaN key must give NaN outputs for its own prompt, and for no other."""
    paths = ReusingPaths(2, 1, 1, torch.device("cpu"))
    store = CompiledStore(load_kernel(), paths, torch.tensor([3, 3]))
    keys = torch.zeros(2, 1, 3, 16)
    keys[1, 0, 2, 5] = math.nan
    store.add_prompts(0, 0, keys, torch.ones(2, 1, 3, 16))
    slots = slots_of(torch.ones(2, 1, dtype=torch.bool))
    rows = Rows.live(slots)
    paths.add(rows, slots)
    store.begin_step(rows)
    output = store.attend(0, *torch.ones(3, 1, 2, 16), AttentionRules(1.0))
    assert torch.equal(output[0], torch.ones(1, 16)) and output[1].isnan().all()


@needs_kernel
def test_memory_that_nothing_was_written_to_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds anything; here NaN, beyond the prompts' ends and in the nodes that no token was given."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape, **of: empty(self, *shape, **of).fill_(math.nan))
    paths = ReusingPaths(2, 3, 12, torch.device("cpu"))
    store = CompiledStore(load_kernel(), paths, torch.tensor([3, 70]))
    draw = torch.Generator().manual_seed(0)
    for g, length in enumerate((3, 70)):
        store.add_prompts(0, g, *torch.randn(2, 1, 2, length, 16, generator=draw))
    live_GK = torch.tensor([[True, False, False]] * 2)
    for _ in range(12):
        slots = slots_of(live_GK)
        rows = Rows.live(slots)
        paths.add(rows, slots)
        store.begin_step(rows)
        assert torch.isfinite(
            store.attend(0, *torch.randn(3, 2, len(rows.flat_R), 16, generator=draw), AttentionRules(0.3))
        ).all()
        paths.descend(torch.arange(3).expand(2, -1))
        live_GK = torch.ones(2, 3, dtype=torch.bool)
    assert paths.capacity > 2 * paths.chunk, "room was added"
