"""The step loop for GPUs, run on the CPU: every step is the same operations on the same shapes, and none waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding.engines import ReplayedEngine, torch_engine
from decoding.tiny_models import bias_token, ragged_prompts, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from bgrpo.decoding import DecodeSettings
from bgrpo.decoding.beam import BeamChooser
from bgrpo.decoding.fast_layers import fast_layers
from bgrpo.decoding.replayed import POLL_EVERY, FixedState
from bgrpo.decoding.sample import SampleChooser, uniform_streams
from bgrpo.decoding.slots import Chooser

EOS = 2
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "item", "equal"}


def described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(described, value)) if isinstance(value, list | tuple) else repr(value)


class Recorder(TorchDispatchMode):
    """Notes every operation with the shapes of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append((function.__name__, *map(described, args)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_every_step_is_the_same_work_and_never_waits(kind: str, mode: str) -> None:
    model = tiny_model(kind, vocabulary=9, seed=3)
    prompts = ragged_prompts(4, 9, seed=1)
    chooser: Chooser = BeamChooser(5, [EOS])
    if mode == "sample":
        chooser = SampleChooser(uniform_streams(range(4), 5, 12), [EOS], 1.0)
    steps = []
    with torch.inference_mode(), fast_layers(model, "fp32", rows=20) as fast:
        state = FixedState(fast, prompts, chooser, 5, 12)
        for _ in range(12):
            with Recorder() as recorder:
                state.advance()
            steps.append(recorder.operations)
    assert len(steps[0]) > 50
    assert all(operations == steps[1] for operations in steps[2:])
    names = {name.partition(".")[0] for name, *_ in steps[1]}
    assert not names & WAITS


def test_ends_soon_after_all_have_ended() -> None:
    model = bias_token(tiny_model(vocabulary=9, seed=6, context=200), EOS, 8.0)
    fed = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape))
    request = DecodeSettings("beam", 4, 100, EOS, pad_token_id=0)
    groups = ReplayedEngine(model).decode([[1] * 5, [3] * 4], request)
    longest = max(len(completion.tokens) for group in groups for completion in group.completions)
    assert longest <= len(fed) - 1 < longest + POLL_EVERY
    assert len(set(fed[1:])) == 1
    assert [[c.tokens for c in group.completions] for group in groups] == [
        [c.tokens for c in group.completions] for group in torch_engine(model).decode([[1] * 5, [3] * 4], request)
    ]
