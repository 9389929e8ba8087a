"""Every way to decode, so that each test of results can run on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from bgrpo.decoding.compiled import KernelUnavailable, load_kernel
from bgrpo.decoding.engine import DecodeEngine
from bgrpo.decoding.fast_layers import FastModel
from bgrpo.decoding.replayed import replayed_search
from bgrpo.decoding.search import Traces
from bgrpo.decoding.slots import Chooser


class ReplayedEngine(DecodeEngine):
    """Decodes on the CPU as it would on a GPU."""

    def _search(
        self, fast: FastModel, prompts: Sequence[Sequence[int]], chooser: Chooser, width: int, steps: int
    ) -> Traces:
        return replayed_search(fast, prompts, chooser, width, steps)


def torch_engine(model: PreTrainedModel, **options: Any) -> DecodeEngine:
    """Without the compiled kernel."""
    return DecodeEngine(model, compiled=False, **options)


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
