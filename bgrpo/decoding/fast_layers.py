"""A model's own layers, made fast while it decodes: the modules stay, some of their computations are replaced.

- Matrix products of the layers run on weights that were packed (fp32) or rounded (bf16) once per call. In bf16 only
  these products are, and the keys and values that attention keeps: residual stream, norms, the arithmetic of attention,
  head and scores stay fp32. A processor without bf16 products multiplies the rounded values in fp32: products of two
  bf16 numbers are exact in fp32, so the roundings are the same.
- Small fp32 products run on weights as they are: packed ones would take longer to start than to multiply.
- The head is cut into blocks of the vocabulary, so that only the logits of one block need to exist at a time.
- ``gelu_new`` is computed in one pass instead of eight; where it follows a matrix product, within that.
- Attention is the search tree's, see :mod:`bgrpo.decoding.tree_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.pytorch_utils import Conv1D

from bgrpo.decoding.direct_gpt2 import HiddenStates, direct_gpt2
from bgrpo.decoding.logit_treatment import LogitTreatment
from bgrpo.decoding.onednn import TYPICAL_ROWS, onednn_multiplies
from bgrpo.decoding.slots import LOGITS_AT_ONCE, Head
from bgrpo.decoding.t5_layers import direct_t5
from bgrpo.decoding.tree_attention import TREE_ATTENTION

Precision = Literal["fp32", "bf16"]
"""Of the layers' matrix products, and of the keys and values that attention keeps."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_SMALLEST_BLOCK, _LARGEST_BLOCK = 1024, 16384  # tokens; larger ones leave the processor's cache for nothing
_GELU_ROWS = 256  # see _in_pieces
_FEW_PRODUCTS = 1 << 22
"""Multiplications of a call up to which oneDNN's 45 microseconds per call outweigh its higher rate."""
_FEWEST_ROWS = 16  # of a call, see bgrpo.decoding.search.feed


@dataclass(frozen=True, slots=True)
class FastModel:
    """A model whose layers are fast for the time being.

    Attributes:
        model: see :func:`fast_layers`.
        head: its head, in blocks.
        kept: see :class:`bgrpo.decoding.tree_attention.TreeStore`.
        plain_rows: most rows of a pass whose products are all small, so that any number of rows costs no set-up.
        hidden_states: the model's pass over a step's rows, where there is a shorter way than transformers'; else None.
    """

    model: PreTrainedModel
    head: Head
    kept: torch.dtype
    plain_rows: int
    hidden_states: HiddenStates | None


@contextmanager
def fast_layers(model: PreTrainedModel, precision: Precision, rows: int) -> Iterator[FastModel]:
    """Replace computations of the model's modules inside the block; its parameters stay as they are.

    Args:
        model: fp32, in evaluation mode. Its weights must not change inside the block.
        precision: of the layers' matrix products.
        rows: most rows whose next tokens are chosen at once; the head's blocks are made for these.
    """
    head = model.get_output_embeddings()
    attention = model.config._attn_implementation
    replaced: list[nn.Module] = []
    try:
        model.config._attn_implementation = TREE_ATTENTION
        modules = list(model.modules())
        before_gelu = _fused_with_gelu(model, modules)
        for module in modules:
            forward = None if module is head else _fast_forward(module, precision, before_gelu)
            if forward is not None:
                module.forward = forward  # hides the class's method
                replaced.append(module)
        blocks = _in_blocks(head, rows, LogitTreatment.of(model.config))
        plain_rows = _plain_rows(modules, precision)
        direct = direct_t5(model) if model.config.is_encoder_decoder else direct_gpt2(model, modules)
        yield FastModel(model, blocks, _DTYPES[precision], plain_rows, direct)
    finally:
        for module in replaced:
            del module.forward
        model.config._attn_implementation = attention


def _in_blocks(head: nn.Linear, rows: int, treatment: LogitTreatment) -> Head:
    """The head, cut so that the logits of one block and all rows are few enough."""
    vocabulary = head.out_features
    size = max(_SMALLEST_BLOCK, LOGITS_AT_ONCE // rows // _SMALLEST_BLOCK * _SMALLEST_BLOCK)
    if rows * vocabulary > LOGITS_AT_ONCE:
        size = min(size, _LARGEST_BLOCK)
    blocks = []
    for start in range(0, vocabulary, size):
        weight_OI = head.weight[start : start + size]
        bias_O = None if head.bias is None else head.bias[start : start + size]
        block = matrix_product(weight_OI, bias_O, "fp32", then_gelu=False)
        blocks.append(block if treatment == LogitTreatment() else _then(block, treatment))
    return Head(tuple(blocks), vocabulary)


def _plain_rows(modules: Sequence[nn.Module], precision: Precision) -> int:
    weights = [module.weight for module in modules if isinstance(module, nn.Linear | Conv1D)]
    if not _packs(weights[0]) or (precision == "bf16" and onednn_multiplies(torch.bfloat16)):
        return 0
    return _FEW_PRODUCTS // max(weight.numel() for weight in weights)


def _fused_with_gelu(model: PreTrainedModel, modules: Sequence[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Matrix products whose result goes straight into a tanh-GELU, with that activation."""
    if not _packs(model.get_output_embeddings().weight):
        return {}
    pairs = {
        module.c_fc if isinstance(module, GPT2MLP) else module.dense_h_to_4h: module.act
        for module in modules
        if isinstance(module, GPT2MLP | GPTNeoXMLP)
    }
    return {product: act for product, act in pairs.items() if isinstance(act, NewGELUActivation | GELUTanh)}


def _fast_forward(
    module: nn.Module, precision: Precision, before_gelu: dict[nn.Module, nn.Module]
) -> Callable[[Tensor], Tensor] | None:
    if module in before_gelu.values():
        return _unchanged
    if isinstance(module, nn.Linear | Conv1D):
        if precision == "fp32" and not _packs(module.weight):
            return None
        weight_OI = module.weight if isinstance(module, nn.Linear) else module.weight.t()
        return matrix_product(weight_OI, module.bias, precision, module in before_gelu)
    if isinstance(module, NewGELUActivation):
        return _gelu
    return None


def matrix_product(
    weight_OI: Tensor, bias_O: Tensor | None, precision: Precision, then_gelu: bool
) -> Callable[[Tensor], Tensor]:
    """``inputs @ weight.T + bias`` in the fastest way that this processor has for the precision.

    Args:
        weight_OI: fp32; packed or rounded once, now or at a first call, so it must not change from here on.
        bias_O: likewise.
        precision: bf16 rounds weight, bias, inputs and results; sums are fp32.
        then_gelu: apply the tanh-GELU to the sums, before they are rounded. Needs fp32 products of oneDNN.

    Returns:
        The product of rows [..., I], as fp32; with ``then_gelu``, in the dtype of the precision.
    """
    rounded = _DTYPES[precision]
    # Where the processor has no bf16 products, the rounded values are multiplied in fp32.
    dtype = torch.float32 if weight_OI.device.type == "cpu" and not onednn_multiplies(rounded) else rounded
    weight = weight_OI.detach().to(rounded).to(dtype)
    bias = None if bias_O is None else bias_O.detach().to(rounded).to(dtype)
    if _packs(weight):
        packed = _packed_product(weight, bias, rounded, then_gelu)
        if dtype != torch.float32 or weight.numel() * _FEWEST_ROWS > _FEW_PRODUCTS:
            return packed
        plain = _plain_product(weight, bias, rounded, then_gelu)
        most_rows = _FEW_PRODUCTS // weight.numel()
        return lambda inputs: plain(inputs) if inputs.shape[-2] <= most_rows else packed(inputs)
    return _plain_product(weight, bias, rounded, then_gelu)


def _plain_product(
    weight: Tensor, bias: Tensor | None, rounded: torch.dtype, then_gelu: bool
) -> Callable[[Tensor], Tensor]:
    linear, dtype = functional.linear, weight.dtype
    if then_gelu:
        return lambda inputs: functional.gelu(
            linear(inputs.to(rounded).to(dtype), weight, bias), approximate="tanh"
        ).to(rounded)
    if rounded == torch.float32:
        return lambda inputs: linear(inputs, weight, bias)
    return lambda inputs: linear(inputs.to(rounded).to(dtype), weight, bias).to(rounded).float()


def _packed_product(
    weight: Tensor, bias: Tensor | None, rounded: torch.dtype, then_gelu: bool
) -> Callable[[Tensor], Tensor]:
    """Packs at its first call: where all products are small there is none."""
    dtype, multiply = weight.dtype, torch.ops.mkldnn._linear_pointwise

    @functools.cache
    def packed() -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)

    if then_gelu:  # the next product takes what this one gives, without a detour through fp32
        return lambda inputs: _in_pieces(
            lambda piece: multiply(piece, packed(), bias, "gelu", [], "tanh"), inputs.to(rounded).to(dtype)
        ).to(rounded)
    if rounded == torch.float32:
        return lambda inputs: multiply(inputs, packed(), bias, "none", [], "")
    return lambda inputs: multiply(inputs.to(rounded).to(dtype), packed(), bias, "none", [], "").to(rounded).float()


def _in_pieces(multiply: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The product of few rows at a time: with a GELU, oneDNN's in bf16 takes 2.4 times as long per row beyond 320."""
    rows = inputs.shape[-2]
    if inputs.dtype != torch.bfloat16 or rows <= _GELU_ROWS:
        return multiply(inputs)
    size = -(-rows // -(-rows // _GELU_ROWS))
    return torch.cat([multiply(piece) for piece in inputs.split(size, -2)], -2)


def _packs(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and onednn_multiplies(weight.dtype)


def _then(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda inputs: second(first(inputs))


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs


def _gelu(inputs: Tensor) -> Tensor:
    return functional.gelu(inputs, approximate="tanh")
