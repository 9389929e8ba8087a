"""The floor of an update: its matrix products alone, each at the rate measured at its own shape."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.learning.matrix_products import times_transposed
from bgrpo.learning.packing import PackedGroups

_TRIALS = 3
_PRODUCTS = 4
"""Per weight matrix: forward of the policy and of the reference, gradient of its input, and gradient of itself."""


def update_floor(model: PreTrainedModel, batches: Sequence[PackedGroups]) -> float:
    """CPU seconds of the products with all weight matrices in one update, reference included.

    Attention, norms, activations, the optimizer and everything in Python are not counted.
    """
    head = model.get_output_embeddings()
    shapes: Counter[tuple[int, int, int]] = Counter()
    for packed in batches:
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                rows = len(packed.scored_S) if module is head else packed.input_ids_1T.shape[1]
                shapes[rows, *_matrix_shape(module)] += 1
    return sum(count * _seconds(*shape) for shape, count in shapes.items())


def _seconds(rows: int, inputs: int, outputs: int) -> float:
    """The four products of one matrix, the gradient products each as fast as the forward one: they are no faster."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    best = float("inf")
    for _ in range(1 + _TRIALS):
        started = time.process_time()
        times_transposed(x, weight)
        best = min(best, time.process_time() - started)
    return _PRODUCTS * best


def _matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs)."""
    first, second = module.get_parameter("weight").shape
    return (first, second) if isinstance(module, Conv1D) else (second, first)
