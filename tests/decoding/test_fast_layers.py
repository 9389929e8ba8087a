"""What is replaced while decoding, that the results are the model's own, and that nothing stays replaced."""

from __future__ import annotations

import pytest
import torch
from decoding.tiny_models import OPTIONS, tiny_model
from torch import nn
from transformers import PreTrainedModel

from bgrpo.decoding import fast_layers as module_under_test
from bgrpo.decoding.fast_layers import fast_layers
from bgrpo.decoding.slots import LOGITS_AT_ONCE, Head
from bgrpo.decoding.tree_attention import TREE_ATTENTION


def own_forwards(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


def whole(head: Head, inputs: torch.Tensor) -> torch.Tensor:
    logits = torch.cat([block(inputs) for block in head.blocks], -1)
    assert logits.shape[-1] == head.vocabulary
    return logits


@pytest.mark.parametrize("rows", [1, 30, 1024])
@pytest.mark.parametrize("vocabulary", [1024, 5000, 40_001])
def test_the_head_is_cut_so_that_few_logits_exist_at_a_time(vocabulary: int, rows: int) -> None:
    model = tiny_model(vocabulary=vocabulary)
    inputs = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), fast_layers(model, "fp32", rows) as fast:
        sizes = [block(inputs).numel() for block in fast.head.blocks]
        torch.testing.assert_close(
            whole(fast.head, inputs), model.get_output_embeddings()(inputs), atol=2e-5, rtol=2e-5
        )
    assert max(sizes) <= LOGITS_AT_ONCE
    assert len(sizes) == 1 or rows * vocabulary > LOGITS_AT_ONCE


@pytest.mark.parametrize("products", [None, "fp32", "no"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_layers_compute_what_they_did(
    kind: str, activation: str, products: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that this processor has, and where oneDNN has fp32 products only, or none."""
    if products is not None:
        offered = [torch.float32] if products == "fp32" else []
        monkeypatch.setattr(module_under_test, "onednn_multiplies", lambda dtype: dtype in offered)
    name = "activation_function" if kind == "gpt2" else "hidden_act"
    model = tiny_model(kind, vocabulary=9, seed=1, **{name: activation})
    blocks = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    inputs = torch.randn(1, 37, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [block(inputs) for block in blocks] + [model.get_output_embeddings()(inputs)]
        with fast_layers(model, "fp32", rows=37) as fast:
            found = [block(inputs) for block in blocks] + [whole(fast.head, inputs)]
        with fast_layers(model, "bf16", rows=37) as fast:
            rounded = [block(inputs) for block in blocks] + [whole(fast.head, inputs)]
    assert blocks
    for exact, fast, rough in zip(expected, found, rounded, strict=True):
        torch.testing.assert_close(fast, exact, atol=2e-5, rtol=2e-5)
        assert rough.dtype == torch.float32
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(expected[:-1], rounded[:-1], strict=True))
    torch.testing.assert_close(rounded[-1], expected[-1], atol=2e-5, rtol=2e-5)  # the head is never rounded


def test_everything_is_put_back_also_after_an_error() -> None:
    model = tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(RuntimeError, match="planted"), fast_layers(model, "bf16", rows=4):
        assert own_forwards(model) and model.config._attn_implementation == TREE_ATTENTION
        raise RuntimeError("planted")
    assert not own_forwards(model)
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
