"""The floor: what the matrix products of a whole decode take alone, at the rate measured at exactly their shapes.

Counted is a decode that reads every prompt once and every beam once per step: the prefill of G·P rows, then T - 1
passes of G·K rows (the first token comes from the prefill), the head on the rows whose next token is chosen, and the
operations of attention, taken to run at the same rate as the matrix products. Nothing else is: no norms, no
activations, no choosing of beams, no memory traffic of the cache. A long prefill is measured on a part of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.bench.rollouts.cases import Case
from bgrpo.bench.turns import Turn, interleave, timed
from bgrpo.decoding.onednn import onednn_multiplies

Multiply = Callable[[Tensor], Tensor]
Way = Callable[[Tensor, int], Multiply]
"""Prepares the product of some number of rows with a weight [inputs, outputs]."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TRIALS = 3  # per way of multiplying, to find the fastest
_TRIED_S = 4.0  # a way that would take longer for its trials leaves some out
_MOST_TRIED_ROWS = 512
_PASSES = 3  # of a decode step, per measurement
_MOST_ROWS = 2048  # of a pass that is measured: the rate of more is the same, and a long prefill takes minutes


@dataclass(frozen=True, slots=True)
class Operations:
    """Work of a whole decode."""

    matrices: tuple[tuple[int, int], ...]  # (inputs, outputs) of every weight matrix of the layers, layer by layer
    head: tuple[int, int]  # (inputs, outputs)
    prefill_rows: int  # G·P
    step_rows: int  # G·K
    steps: int  # passes over the beams, T - 1
    head_rows: int  # of the prefill, G
    attention_flops: int  # of all passes: scores and weighted values, each place that a token sees

    @property
    def matrix_flops(self) -> int:
        """Of all products with the layers' weights."""
        return 2 * (self.prefill_rows + self.steps * self.step_rows) * sum(a * b for a, b in self.matrices)


def count_operations(model: PreTrainedModel, case: Case) -> Operations:
    """The work of a case whose prompts all have ``prompt_tokens`` and whose completions do not end.

    Raises:
        ValueError: the case's prompts or completions have lengths of their own.
    """
    if case.prompt_tokens is None:
        raise ValueError(f"{case.name}: completions end by themselves, so the work is not known beforehand")
    head = model.get_output_embeddings()
    layers = model.config.num_hidden_layers
    prompt, steps, rows = case.prompt_tokens, case.new_tokens - 1, case.beams
    seen = case.prompts * prompt * (prompt + 1) // 2 + rows * sum(prompt + step for step in range(1, steps + 1))
    return Operations(
        matrices=tuple(matrix_shape(module) for module in model.base_model.modules() if is_matrix(module)),
        head=(head.in_features, head.out_features),
        prefill_rows=case.prompts * prompt,
        step_rows=rows,
        steps=steps,
        head_rows=case.prompts,
        attention_flops=4 * model.config.hidden_size * layers * seen,
    )


class FloorProbe:
    """Measures the floor of one precision.

    For every shape the fastest way to multiply on this machine is found first; then :meth:`turn` runs the products
    of whole passes, each matrix with weights of its own, as a decode would. The head is in fp32 always.

    Args:
        operations: of the whole decode.
        dtype: of the layers' products.
        plain: multiply with ``torch.mm`` only, as an unmodified model does.
    """

    def __init__(self, operations: Operations, dtype: str, plain: bool = False) -> None:
        self._operations = operations
        kind = DTYPES[dtype]
        ways = [_plain] if plain else _ways(kind)
        measured_rows = min(operations.prefill_rows, _MOST_ROWS)
        self._prefills = operations.prefill_rows / measured_rows
        layer_rows = (measured_rows, operations.step_rows)
        self._prefill, self._step = (_Products(operations.matrices, rows, kind, ways) for rows in layer_rows)
        head_ways = [_plain] if plain else _ways(torch.float32)
        head_rows = (operations.head_rows, operations.step_rows)
        self._first_head, self._head = (
            _Products([operations.head], rows, torch.float32, head_ways) for rows in head_rows
        )

    def turn(self) -> Turn:
        """The floor of a whole decode, from one prefill and a few steps run now."""
        work = self._operations
        step = min((self._step.turn() for _ in range(_PASSES)), key=lambda turn: turn.seconds)
        matrices = self._prefill.turn() * self._prefills + step * work.steps
        return matrices * (1 + work.attention_flops / work.matrix_flops) + (
            self._first_head.turn() + self._head.turn() * work.steps
        )


class _Products:
    """One pass of [rows, inputs] times every matrix, each in the way that is fastest for its shape."""

    def __init__(self, shapes: Sequence[tuple[int, int]], rows: int, dtype: torch.dtype, ways: Sequence[Way]) -> None:
        chosen = {shape: _fastest_way(rows, *shape, dtype, ways) for shape in set(shapes)}
        generator = torch.Generator().manual_seed(0)
        self._inputs = {
            inputs: torch.randn(rows, inputs, generator=generator).to(dtype) for inputs in {a for a, _ in shapes}
        }
        self._multiply: list[tuple[int, Multiply]] = [
            (inputs, chosen[inputs, outputs](torch.randn(inputs, outputs, generator=generator).to(dtype), rows))
            for inputs, outputs in shapes
        ]

    @torch.inference_mode()
    def turn(self) -> Turn:
        return timed(self._run)

    def _run(self) -> None:
        for inputs, multiply in self._multiply:
            multiply(self._inputs[inputs])


def _fastest_way(rows: int, inputs: int, outputs: int, dtype: torch.dtype, ways: Sequence[Way]) -> Way:
    """The way with the best median over a few trials, taken in turns after one to warm up.

    A processor without products of a precision may take a hundred times as long for them: such a way is tried once.
    """
    rows = min(rows, _MOST_TRIED_ROWS)
    x, weight = torch.zeros(rows, inputs, dtype=dtype), torch.zeros(inputs, outputs, dtype=dtype)
    with torch.inference_mode():
        calls = {str(place): partial(timed, partial(way(weight, rows), x)) for place, way in enumerate(ways)}
        turns = interleave(calls, 1 + _TRIALS, _TRIED_S)
    medians = [median(turn.seconds for turn in of[1:] or of) for of in turns.values()]
    return ways[medians.index(min(medians))]


def _ways(dtype: torch.dtype) -> list[Way]:
    """Ways to multiply that this machine has; MKL is slow on some processors where oneDNN is not."""
    if onednn_multiplies(dtype):
        return [_plain, _transposed, _packed]
    return [_plain, _transposed] if dtype == torch.float32 else [_plain, _transposed, _in_fp32]


def _plain(weight: Tensor, rows: int) -> Multiply:
    return lambda x: torch.mm(x, weight)


def _transposed(weight: Tensor, rows: int) -> Multiply:
    rowwise = weight.T.contiguous()
    return lambda x: functional.linear(x, rowwise)


def _packed(weight: Tensor, rows: int) -> Multiply:
    """oneDNN, with the weight in blocks that it chose for this number of rows."""
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous(), rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocks, None, "none", [], "")


def _in_fp32(weight: Tensor, rows: int) -> Multiply:
    """bf16 values where the processor has no products of them: each product is exact in fp32."""
    multiply = (_packed if onednn_multiplies(torch.float32) else _transposed)(weight.float(), rows)
    return lambda x: multiply(x.float()).to(weight.dtype)


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether a module multiplies with a weight matrix."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def matrix_shape(module: torch.nn.Module) -> tuple[int, int]:
    """(inputs, outputs); GPT-2 stores its matrices the other way round than ``torch.nn.Linear``."""
    first, second = module.get_parameter("weight").shape
    return (first, second) if isinstance(module, Conv1D) else (second, first)
