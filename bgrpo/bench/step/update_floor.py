"""The floor of an update: its matrix products alone, each at the rate measured at its own shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from bgrpo.bench.rollouts.decode_floor import is_matrix, matrix_shape
from bgrpo.bench.turns import timed
from bgrpo.learning.matrix_products import times_transposed
from bgrpo.learning.packing import PackedGroups

_TRIALS = 3
_PRODUCTS = 4
"""Per weight matrix: forward of the policy and of the reference, gradient of its input, and gradient of itself."""


def update_floor(model: PreTrainedModel, batches: Sequence[PackedGroups]) -> float:
    """CPU seconds of the products with all weight matrices in one update, reference included.

    Attention, norms, activations, the optimizer and everything in Python are not counted.
    """
    return sum(count * _seconds(*shape) for shape, count in count_products(model, batches).items())


def count_products(model: PreTrainedModel, batches: Sequence[PackedGroups]) -> Counter[tuple[int, int, int]]:
    """How many matrices multiply (rows, inputs, outputs) in a forward pass over all batches."""
    head = model.get_output_embeddings()
    shapes: Counter[tuple[int, int, int]] = Counter()
    for packed in batches:
        for module in filter(is_matrix, model.modules()):
            rows = len(packed.scored_S) if module is head else packed.input_ids_1T.shape[1]
            shapes[rows, *matrix_shape(module)] += 1
    return shapes


def _seconds(rows: int, inputs: int, outputs: int) -> float:
    """The four products of one matrix, the gradient products each as fast as the forward one: they are no faster."""
    multiply = partial(times_transposed, torch.randn(rows, inputs), torch.randn(outputs, inputs))
    return _PRODUCTS * min(timed(multiply).cpu_seconds for _ in range(1 + _TRIALS))
