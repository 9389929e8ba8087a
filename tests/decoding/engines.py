"""Every way to decode, so that each test of results can run on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from bgrpo.decoding.batch_search import TreeSearch
from bgrpo.decoding.compiled import KernelUnavailable, load_kernel
from bgrpo.decoding.engine import DecodeEngine
from bgrpo.decoding.replayed import replayed_search
from bgrpo.decoding.search import Traces
from bgrpo.decoding.slots import Chooser


class ReplayedTree(TreeSearch):
    """The tree's search on the CPU as it is on a GPU."""

    def run(self, prompts: Sequence[Sequence[int]], chooser: Chooser, group_size: int, steps: int) -> Traces:
        assert self._fast is not None
        return replayed_search(self._fast, prompts, chooser, group_size, steps)


class ReplayedEngine(DecodeEngine):
    """Decodes on the CPU as it would on a GPU."""

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        super().__init__(model, compiled=False, **options)
        self._search = ReplayedTree(model, options.get("precision", "fp32"), options.get("max_rows", 1024), None)


def torch_engine(model: PreTrainedModel, **options: Any) -> DecodeEngine:
    """Without the compiled kernel."""
    return DecodeEngine(model, compiled=False, **options)


def plain_engine(model: PreTrainedModel, **options: Any) -> DecodeEngine:
    """The model's own forward pass over rows."""
    return DecodeEngine(model, engine="plain", **options)


ENGINES: dict[str, Callable[..., DecodeEngine]] = {
    "default": DecodeEngine,
    "torch": torch_engine,
    "replayed": ReplayedEngine,
}
"""``default`` uses the compiled kernel where there is a compiler."""


def why_no_kernel() -> str | None:
    """The reason why the compiled kernel is not available; None when it is."""
    try:
        load_kernel()
    except KernelUnavailable as error:
        return str(error)
    return None
