"""The step loop for devices where launching is dear: every step is the same work on the same tensors.

All K slots of every prompt go through the model in every step, ended ones too, and no step waits for the device; on
CUDA a step is recorded as a graph and replayed. Whether all is finished is looked up now and then.

Measured on no GPU so far: on the CPU it gives the results of :mod:`bgrpo.decoding.search`, with constant shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bgrpo.decoding.fast_layers import FastModel
from bgrpo.decoding.paths import FixedPaths
from bgrpo.decoding.prefill import prefill, roots
from bgrpo.decoding.search import Traces, feed, trace
from bgrpo.decoding.slots import Chooser, Rows, Slots, root_slots
from bgrpo.decoding.tree_attention import TorchStore

POLL_EVERY = 8
"""Steps between looks at whether all hypotheses have ended; each look waits for the device."""


@torch.inference_mode()
def replayed_search(
    fast: FastModel,
    prompts: Sequence[Sequence[int]],
    chooser: Chooser,
    group_size: int,
    steps: int,
) -> Traces:
    """Complete every prompt; arguments and result as :func:`bgrpo.decoding.search.search`."""
    state = FixedState(fast, prompts, chooser, group_size, steps)
    state.advance()
    advance = _recorded(state.advance) if fast.model.device.type == "cuda" and steps > 1 else state.advance
    done = 1
    while done < steps and (done % POLL_EVERY or state.any_live()):
        advance()
        done += 1
    return trace(state.history(done))


class FixedState:
    """All tensors of a search, allocated once.

    Args: see :func:`replayed_search`.
    """

    def __init__(
        self,
        fast: FastModel,
        prompts: Sequence[Sequence[int]],
        chooser: Chooser,
        group_size: int,
        steps: int,
    ) -> None:
        device = fast.model.device
        self._fast = fast
        self._chooser = chooser
        places, tokens = roots(fast.model, prompts)
        places_G, root_G = (torch.tensor(numbers, device=device) for numbers in (places, tokens))
        self._places_R = places_G.repeat_interleave(group_size)
        self._paths = FixedPaths(len(prompts), group_size, steps, device)
        self._store = TorchStore(self._paths, places_G, max(places), fast.kept)
        prefill(fast.model, prompts, self._store)
        self._rows = Rows.of(torch.arange(len(prompts) * group_size, device=device), group_size)
        first = root_slots(root_G, group_size, chooser.roots)
        self._slots = Slots(*(tensor.clone() for tensor in _tensors(first)))
        self._history = [tensor.new_zeros(steps, *tensor.shape) for tensor in _tensors(self._slots)]
        self._step = torch.zeros((), dtype=torch.long, device=device)

    def advance(self) -> None:
        """One step. Reads and writes the same memory in every call."""
        self._paths.add(self._step)
        self._store.begin_step(self._rows)
        ids_R = self._slots.tokens_GK.flatten().clamp(min=0)
        logits = feed(self._fast, self._store, ids_R, self._places_R + self._step)
        slots = self._chooser.choose(logits, self._rows, self._slots, self._step)
        self._paths.descend(slots.parents_GK)
        for held, new, kept in zip(_tensors(self._slots), _tensors(slots), self._history, strict=True):
            held.copy_(new)
            kept.index_copy_(0, self._step.view(1), new[None])
        self._step += 1

    def any_live(self) -> bool:
        """Whether a hypothesis goes on. Waits for the device."""
        return bool(self._slots.live_GK.any())

    def history(self, steps: int) -> list[Slots]:
        """The slots after each of the first steps."""
        return [Slots(*(kept[step] for kept in self._history)) for step in range(steps)]


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; it has run once before, so that all that is allocated once is there."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _tensors(slots: Slots) -> tuple[Tensor, ...]:
    return slots.parents_GK, slots.tokens_GK, slots.logps_GK, slots.scores_GK, slots.live_GK
