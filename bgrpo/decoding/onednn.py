"""What oneDNN can multiply on the processor at hand, found out by trying it.

Whether it takes a precision depends on the processor, on how PyTorch was built, and on oneDNN's own settings
(``ONEDNN_MAX_CPU_ISA``). So one small product of each kind is tried, instead of asking for the processor's features.
"""

from __future__ import annotations

import functools

import torch

TYPICAL_ROWS = 256
"""What packed weights are laid out for; any number of rows may follow."""


@functools.cache
def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies CPU matrices of this dtype here: by packed weights, by plain ones, and with a GELU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    with torch.inference_mode():
        rows, weight = (torch.ones(size, 32, dtype=dtype, device="cpu") for size in (2, 16))
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
            for matrix in (packed, weight):
                for activation, kind in (("none", ""), ("gelu", "tanh")):
                    product = torch.ops.mkldnn._linear_pointwise(rows, matrix, None, activation, [], kind)
                    if not bool((product == 32).all()):  # GELU leaves a number of this size as it is
                        return False
        except (RuntimeError, NotImplementedError):  # how PyTorch says that there is no such product
            return False
    return True
