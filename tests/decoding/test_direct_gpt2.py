"""The short pass of a GPT-2 against transformers' own, bit for bit, and where it is not taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding.engines import torch_engine
from decoding.tiny_models import ragged_prompts, tiny_model

from bgrpo.decoding import DecodeEngine, DecodeSettings, fast_layers
from bgrpo.decoding.direct_gpt2 import direct_gpt2

SHAPES: dict[str, dict[str, Any]] = {
    "shipped": {"activation_function": "gelu_pytorch_tanh"},
    "gelu_new, narrow": {"activation_function": "gelu_new", "n_inner": 24},
    "relu, scaled by layer": {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False, "num_attention_heads": 4},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", [DecodeEngine, torch_engine])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_exactly_what_transformers_gives(
    shape: str, engine: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model("gpt2", vocabulary=40, seed=3, **SHAPES[shape]), ragged_prompts(5, 40, seed=2)
    with torch.no_grad():  # biases and norms that do something
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert direct_gpt2(model, list(model.modules())) is not None
    found = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr(fast_layers, "direct_gpt2", lambda model, modules: None)
        for mode in ("beam", "sample"):
            settings = DecodeSettings(mode, 7, 12, 2, 0)
            found.append(engine(model, precision=precision).decode(prompts, settings, range(5)))
    assert found[:2] == found[2:]


def test_other_parts_and_listeners_keep_transformers_pass() -> None:
    def taken(model: Any) -> bool:
        return direct_gpt2(model, list(model.modules())) is not None

    assert not taken(tiny_model("llama"))
    other_norm = tiny_model("gpt2")
    other_norm.transformer.h[1].ln_2 = torch.nn.RMSNorm(32)
    assert not taken(other_norm)
    heard = tiny_model("gpt2")
    handle = heard.transformer.h[0].register_forward_hook(lambda *_: None)
    assert not taken(heard)
    handle.remove()
    assert taken(heard)
