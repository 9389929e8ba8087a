"""How the prompts of one batch are completed: what a decode engine asks of the search tree, and of the plain path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from transformers import PreTrainedModel

from bgrpo.decoding.compiled import TreeAttentionKernel
from bgrpo.decoding.fast_layers import FastModel, Precision, fast_layers
from bgrpo.decoding.replayed import replayed_search
from bgrpo.decoding.search import Traces, search
from bgrpo.decoding.slots import Chooser


class BatchSearch(Protocol):
    """The tree, or the plain path.

    Attributes:
        most_rows: completions that it may be given at once.
    """

    most_rows: int

    def ready(self, rows: int) -> AbstractContextManager[None]:
        """Around all batches of a request, of at most so many rows; the weights do not change inside."""
        ...

    def takes_ragged(self) -> bool:
        """Whether the prompts of a batch may differ in length. Asked when :meth:`ready`."""
        ...

    def run(self, prompts: Sequence[Sequence[int]], chooser: Chooser, group_size: int, steps: int) -> Traces:
        """Complete every prompt.

        Args:
            prompts: none of them empty.
            chooser: beam search or sampling.
            group_size: K.
            steps: the most tokens of a completion.
        """
        ...


class TreeSearch:
    """Every shared token once; see :mod:`bgrpo.decoding.search`, and on a GPU :mod:`bgrpo.decoding.replayed`.

    Args:
        model: that :func:`bgrpo.decoding.support.service_of` gives to the tree.
        precision: of the layers' matrix products.
        most_rows: bounds memory.
        kernel: compiled attention; None: PyTorch's.
    """

    def __init__(
        self, model: PreTrainedModel, precision: Precision, most_rows: int, kernel: TreeAttentionKernel | None
    ) -> None:
        self.most_rows = most_rows
        self._model = model
        self._precision = precision
        self._kernel = kernel
        self._fast: FastModel | None = None

    @contextmanager
    def ready(self, rows: int) -> Iterator[None]:
        """See :class:`BatchSearch`."""
        with fast_layers(self._model, self._precision, rows) as self._fast:
            yield
        self._fast = None

    def takes_ragged(self) -> bool:
        """See :class:`BatchSearch`."""
        return True

    def run(self, prompts: Sequence[Sequence[int]], chooser: Chooser, group_size: int, steps: int) -> Traces:
        """See :class:`BatchSearch`."""
        if self._fast is None:
            raise RuntimeError("run is only called inside ready")
        if self._model.device.type == "cpu" or chooser.waits:
            return search(self._fast, prompts, chooser, group_size, steps, self._kernel)
        return replayed_search(self._fast, prompts, chooser, group_size, steps)
