"""Logits that do not depend on what else is scored with a text: not on the batch, nor on the place in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.errors import one_line

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says in a RuntimeError where a CPU has none left."""

ROWS = 32
TOKENS = 16_384
"""Most rows, and most tokens with the padding, of one batch on a GPU."""


@contextmanager
def telling_memory(what: str) -> Iterator[None]:
    """A block that runs a model; where memory ends, the message says whose it was, and what to change.

    Raises:
        MemoryError: there is too little. An actor dies of it, and its request is done again by a fresh one.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in str(error) for words in _NO_MEMORY
        ):
            raise
        reason = one_line(str(error)) or type(error).__name__
        raise MemoryError(
            f"{what}: out of memory ({reason}): take a smaller model, dtype=bf16, a lower max_tokens, or fewer "
            f"reward_model.processes"
        ) from error


class FixedShapes:
    """Logits of token sequences: the same bits in any order and with any neighbours, on one machine.

    On a CPU every sequence goes alone and unpadded: its logits are a function of its tokens and the number of threads.
    On a GPU sequences go in batches of a few shapes, always full: rows that are not needed are copies. Kernels are
    chosen by shape, so each row is computed alike wherever it stands, unless a kernel divides its sums by the position
    of a tile. A trial, when a shape is used first, finds that: it is a function of the model and the shape alone. Where
    the bits of a row change with its place or its neighbours, sequences of that length go alone. A shape for which the
    GPU has not enough memory has half of the rows, or a quarter, ….

    Args:
        model: a sequence classifier or an encoder in evaluation mode.
        limit: longest sequence that it takes, in tokens; None: any.
        rows: most rows of a batch; None: 1 on a CPU, ``ROWS`` elsewhere.
        outputs: what is read of the model's outputs, given the mask of the tokens: numbers per row.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        limit: int | None,
        rows: int | None = None,
        outputs: Callable[[Any, Tensor], Tensor] = lambda outputs, mask_RL: outputs.logits,
    ) -> None:
        text = model.config.get_text_config()
        self._model, self._limit, self._outputs = model, limit, outputs
        self._pad: int | None = text.pad_token_id
        self._vocabulary: int = text.vocab_size
        batched = 1 if model.device.type == "cpu" else ROWS
        self._most_rows = 1 if self._pad is None else rows or batched
        self._rows: dict[int, int] = {}

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[float]]]:
        """(position, logits) of every sequence, in an order of its own; equal sequences are computed once."""
        places: dict[tuple[int, ...], list[int]] = {}
        for position, ids in enumerate(sequences):
            places.setdefault(tuple(ids), []).append(position)
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for ids in places:
            by_length.setdefault(self._padded(len(ids)), []).append(ids)
        for length, wanted in sorted(by_length.items()):
            rows = self.rows(length)
            for start in range(0, len(wanted), rows):
                batch = wanted[start : start + rows]
                for ids, outputs in zip(batch, self._forward(batch, rows, length), strict=False):
                    for position in places[ids]:
                        yield position, outputs

    def rows(self, length: int) -> int:
        """Rows of a batch of this padded length, by trial when it is asked for first."""
        if length not in self._rows:
            rows = max(1, min(self._most_rows, TOKENS // length))
            while rows > 1:
                try:
                    rows = rows if self._independent(rows, length) else 1
                    break
                except torch.OutOfMemoryError:
                    rows //= 2
            self._rows[length] = rows
        return self._rows[length]

    def _padded(self, length: int) -> int:
        """The shape that a sequence of this length goes in: its own, or the next of 32, 48, 64, 96, 128, 192 …"""
        if self._most_rows == 1:
            return length
        step = 32
        while step < length:
            step = step * 3 // 2 if step & (step - 1) == 0 else step * 4 // 3
        return step if self._limit is None else min(step, self._limit)

    def _forward(self, batch: Sequence[Sequence[int]], rows: int, length: int) -> list[list[float]]:
        device = self._model.device
        with torch.inference_mode():
            if rows == 1:
                ids_RL = torch.tensor([list(batch[0])], device=device)
                mask_RL = torch.ones_like(ids_RL)
                outputs = self._model(input_ids=ids_RL)
            else:
                ids_RL = torch.full((rows, length), self._pad or 0)
                mask_RL = torch.zeros((rows, length), dtype=torch.long)
                for row in range(rows):
                    ids = batch[row] if row < len(batch) else batch[0]
                    ids_RL[row, : len(ids)] = torch.tensor(ids)
                    mask_RL[row, : len(ids)] = 1
                mask_RL = mask_RL.to(device)
                outputs = self._model(input_ids=ids_RL.to(device), attention_mask=mask_RL)
            return self._outputs(outputs, mask_RL).float().tolist()

    def _independent(self, rows: int, length: int) -> bool:
        """Whether every row has the same bits in other places and beside other rows."""
        draw = torch.Generator().manual_seed(0)
        ids_RL = torch.randint(self._vocabulary, (rows, length), generator=draw)
        ids_RL[ids_RL == self._pad] = (1 + (self._pad or 0)) % self._vocabulary
        batch = [ids_RL[row, : length - row % max(1, length // 2)].tolist() for row in range(rows)]
        expected = self._forward(batch, rows, length)
        turned = all(
            self._forward(batch[by:] + batch[:by], rows, length) == expected[by:] + expected[:by]
            for by in sorted({1, rows // 2, rows - 1})
        )
        return turned and all(
            self._forward([batch[row]], rows, length) == [expected[row]] * rows for row in (0, rows - 1)
        )
