"""Faster fp32 matrix products of a model's layers on the CPU, forward and backward, the model as it is.

Torch multiplies fp32 matrices with MKL, which reaches less than half of oneDNN's rate on AMD processors with AVX-512.
oneDNN prepares a kernel for each new shape (about half a millisecond), so its callers round sizes that vary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bgrpo.decoding.onednn import onednn_multiplies


class OneDNNProducts(TorchFunctionMode):
    """Inside this context ``linear`` and ``addmm`` on fp32 CPU tensors, biases included, are oneDNN's.

    The results and gradients are those of torch up to fp32 rounding. Everything else is left alone.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not kwargs and not torch.is_autocast_enabled("cpu"):  # whose products are bf16's
            if func is functional.linear and _is_plain(*args[:2]):
                return _Product.apply(args[0], args[1].t(), args[2] if len(args) > 2 else None)
            if func is torch.addmm and _is_plain(*args[1:]) and args[0].ndim == 1:
                bias, rows, weight = args
                return _Product.apply(rows, weight, bias)
        return func(*args, **(kwargs or {}))


class _Product(torch.autograd.Function):
    """``rows @ weight + bias``: [..., inputs] times [inputs, outputs]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)  # frozen weights need no rows
        ctx.has_bias = bias is not None
        return times_transposed(rows, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad = grads[0]
        flat = grad.reshape(-1, grad.shape[-1])
        of_rows = times_transposed(grad, weight) if ctx.needs_input_grad[0] else None
        of_weight = (
            times_transposed(rows.reshape(-1, rows.shape[-1]).t(), flat.t()) if ctx.needs_input_grad[1] else None
        )
        of_bias = flat.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return of_rows, of_weight, of_bias


def times_transposed(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ matrix.T + bias``, in fp32 on the CPU by oneDNN where there is one; strides may be any."""
    if not _is_plain(rows, matrix):
        return functional.linear(rows, matrix, bias)
    return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")


def _is_plain(*tensors: Tensor) -> bool:
    return onednn_multiplies(torch.float32) and all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() for tensor in tensors
    )
