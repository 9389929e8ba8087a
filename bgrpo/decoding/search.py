"""The step loop: one forward pass of the model per new token, over all live hypotheses of a batch at once.

Only live slots go through the model, side by side without padding, whichever prompts they belong to.

Shape letters: G prompts, K slots per prompt, R rows, E model width, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bgrpo.decoding.compiled import TreeAttentionKernel
from bgrpo.decoding.fast_layers import FastModel
from bgrpo.decoding.paths import ReusingPaths
from bgrpo.decoding.prefill import prefill, roots
from bgrpo.decoding.slots import Chooser, RowLogits, Rows, Slots, root_slots
from bgrpo.decoding.tree_attention import CompiledStore, TorchStore, TreeStore

_ROW_STEPS = 16
"""Numbers of rows are rounded up to multiples where every new number costs set-up time in the matrix library."""


@dataclass(frozen=True, slots=True)
class Traces:
    """Completions of a batch, as tensors on the CPU.

    Attributes:
        tokens_GKT: tokens, then :data:`bgrpo.decoding.slots.NO_TOKEN`.
        logps_GKT: log-probability of each token in the distribution chosen from (fp32).
        scores_GK: summed log-probability (fp64); -inf where there is no completion.
        finished_GK: True where the completion has ended, False where it was cut off.
    """

    tokens_GKT: Tensor
    logps_GKT: Tensor
    scores_GK: Tensor
    finished_GK: Tensor


@torch.inference_mode()
def search(
    fast: FastModel,
    prompts: Sequence[Sequence[int]],
    chooser: Chooser,
    group_size: int,
    steps: int,
    kernel: TreeAttentionKernel | None,
) -> Traces:
    """Complete every prompt.

    Args:
        fast: the model.
        prompts: none of them empty.
        chooser: beam search or sampling.
        group_size: K.
        steps: T, the most tokens of a completion.
        kernel: compiled attention; None: PyTorch's.
    """
    places, tokens = roots(fast.model, prompts)
    places_G, root_G = (torch.tensor(numbers, device=fast.model.device) for numbers in (places, tokens))
    paths = ReusingPaths(len(prompts), group_size, steps, fast.model.device)
    store: TreeStore
    if kernel is not None:
        store = CompiledStore(kernel, paths, places_G, fast.kept)
    else:
        store = TorchStore(paths, places_G, max(places), fast.kept)
    prefill(fast.model, prompts, store)
    slots = root_slots(root_G, group_size, chooser.roots)
    history: list[Slots] = []
    for step in range(steps):
        rows = Rows.live(slots)
        if not len(rows.flat_R):
            break
        paths.add(rows, slots)
        store.begin_step(rows)
        ids_R = rows.of_slots(slots.tokens_GK)
        logits = feed(fast, store, ids_R, places_G[rows.prompt_R] + step)
        slots = chooser.choose(logits, rows, slots, torch.tensor(step, device=fast.model.device))
        history.append(slots)
        paths.descend(slots.parents_GK)
    return trace(history)


def feed(fast: FastModel, store: TreeStore, ids_R: Tensor, positions_R: Tensor) -> RowLogits:
    """Put one token of each row through the model; what follows it, as logits."""
    fillers = 0 if len(ids_R) <= fast.plain_rows else -len(ids_R) % _ROW_STEPS
    if fillers:
        ids_R, positions_R = (functional.pad(places, (0, fillers)) for places in (ids_R, positions_R))
    ids_1R, positions_1R = ids_R[None], positions_R[None]
    if fast.hidden_states is not None:
        return RowLogits(fast.hidden_states(ids_1R, positions_1R, store)[0], fast.head)
    outputs = fast.model.base_model(
        input_ids=ids_1R, attention_mask=torch.ones_like(ids_1R), position_ids=positions_1R, use_cache=False, tree=store
    )
    return RowLogits(outputs.last_hidden_state[0], fast.head)


def trace(history: Sequence[Slots]) -> Traces:
    """Follow the back-pointers from the last slots to the first."""
    last = history[-1]
    pointers_GK = torch.arange(last.scores_GK.shape[1], device=last.scores_GK.device).expand_as(last.parents_GK)
    tokens, logps = [], []
    for slots in reversed(history):
        tokens.append(slots.tokens_GK.gather(1, pointers_GK))
        logps.append(slots.logps_GK.gather(1, pointers_GK))
        pointers_GK = slots.parents_GK.gather(1, pointers_GK)
    return Traces(
        tokens_GKT=torch.stack(tokens[::-1], -1).cpu(),
        logps_GKT=torch.stack(logps[::-1], -1).cpu(),
        scores_GK=last.scores_GK.cpu(),
        finished_GK=~last.live_GK.cpu(),
    )
