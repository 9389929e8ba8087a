"""The plain path finds out what a model allows, and gives the same results by each of its ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding.engines import plain_engine
from decoding.tiny_models import ragged_prompts, tiny_model
from transformers import DynamicCache, PreTrainedModel

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.groups import Group

BEAMS = DecodeSettings("beam", 4, 6, eos_token_id=2, pad_token_id=0)
SAMPLES = DecodeSettings("sample", 4, 6, eos_token_id=2, pad_token_id=0)
PROMPTS = ragged_prompts(4, 11, seed=1)


def passes(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """Filled with the shape of each forward pass's input from now on."""
    shapes: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def assert_same(found: list[Group], expected: list[Group]) -> None:
    for group, other in zip(found, expected, strict=True):
        assert [one.tokens for one in group.completions] == [one.tokens for one in other.completions]
        for one, two in zip(group.completions, other.completions, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


@pytest.mark.parametrize("settings", [BEAMS, SAMPLES])
def test_every_way_gives_what_the_tree_gives(settings: DecodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2", vocabulary=11, seed=4)
    expected = DecodeEngine(model).decode(PROMPTS, settings, seeds=range(4))
    shapes = passes(model)
    engine = plain_engine(model)
    assert_same(engine.decode(PROMPTS, settings, seeds=range(4)), expected)
    probes = len(shapes)
    shapes.clear()
    assert_same(engine.decode(PROMPTS, settings, seeds=range(4)), expected)
    assert len(shapes) < probes, "a model is tried once"
    assert shapes[0] == (4, 9) and {length for _, length in shapes[1:]} == {1}, "all prompts together, then the cache"

    def mixed_up(self: DynamicCache, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx.flip(0))

    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "reorder_cache", mixed_up)
        shapes.clear()
        assert_same(plain_engine(model).decode(PROMPTS, settings, seeds=range(4)), expected)
        assert shapes[-1][1] > 9, "a cache that mixes rows up is found out: rows are read anew"


def test_a_model_that_reads_what_fills_up_a_row_searches_each_length_alone() -> None:
    model = tiny_model("rwkv", vocabulary=11, seed=4)
    shapes = passes(model)
    together = plain_engine(model).decode(PROMPTS, BEAMS)
    lengths = {len(prompt) for prompt in PROMPTS}
    assert len(lengths) > 2 and lengths <= {length for _, length in shapes}
    for prompt, group in zip(PROMPTS, together, strict=True):
        assert_same(plain_engine(model).decode([prompt], BEAMS), [group])


def test_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("falcon", vocabulary=11, seed=4)
    shapes = passes(model)
    plain_engine(model, max_rows=8).decode(PROMPTS, BEAMS)
    assert max(rows for rows, _ in shapes) == 8
