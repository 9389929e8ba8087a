from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bgrpo.learning.matrix_products import OneDNNProducts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 1, 5)])
def test_linear_layers_keep_their_results_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    check(nn.Linear(5, 9, bias=bias), shape)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
def test_so_do_those_of_gpt2(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check(Conv1D(9, 5), shape)


def check(layer: nn.Module, shape: tuple[int, ...]) -> None:
    rows = torch.randn(shape).requires_grad_()
    leaves = [rows, *layer.parameters()]
    expected = layer.double()(rows.double())
    weights = torch.randn(expected.shape)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    layer.float()
    leaves = [rows, *layer.parameters()]
    with OneDNNProducts():
        result = layer(rows)
    assert type(result.grad_fn).__name__ in ("_ProductBackward", "ViewBackward0"), "torch's own product was taken"
    assert torch.allclose(result.double(), expected, atol=1e-5)
    for gradient, exact in zip(torch.autograd.grad((result * weights).sum(), leaves), wanted, strict=True):
        assert torch.allclose(gradient.double(), exact.double(), atol=1e-5)


def test_frozen_weights_get_no_gradient() -> None:
    layer, rows = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4, requires_grad=True)
    with OneDNNProducts():
        layer(rows).sum().backward()
    assert layer.weight.grad is None and rows.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(dtype: torch.dtype) -> None:
    layer, rows = nn.Linear(4, 3, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    with OneDNNProducts():
        assert torch.equal(layer(rows), nn.functional.linear(rows, layer.weight, layer.bias))
        assert type(layer(rows).grad_fn).__name__ == "AddmmBackward0"
