"""The step loop: one forward pass of the model per new token, over all prompts and rows of a batch at once.

Shape letters: G prompts, P prompt places, S rows fed to the model, K completions per prompt, T steps, W ≤ K slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.decoding.slots import NO_TOKEN, Chooser, Slots, root_slots
from bgrpo.decoding.tree_cache import TreeCache

COMPACT_EVERY = 8
"""Steps between drops of dead nodes: about a quarter of the nodes stay alive, and a drop moves these once."""


@dataclass(frozen=True, slots=True)
class Traces:
    """Completions of a batch, as tensors on the CPU.

    Attributes:
        tokens_GKT: tokens, then :data:`bgrpo.decoding.slots.NO_TOKEN`.
        logps_GKT: log-probability of each token at temperature 1 (fp32).
        scores_GK: summed log-probability (fp64); -inf where there is no completion.
        first_slots_GK: slot that the completion held after the first step.
    """

    tokens_GKT: Tensor
    logps_GKT: Tensor
    scores_GK: Tensor
    first_slots_GK: Tensor


@torch.inference_mode()
def search(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    chooser: Chooser,
    width: int,
    steps: int,
    pad: int,
    poll_every: int,
) -> Traces:
    """Complete every prompt.

    Args:
        model: in evaluation mode; see :func:`bgrpo.decoding.support.check_supported`.
        prompts: none of them empty.
        chooser: beam search or sampling.
        width: K.
        steps: T, the most tokens of a completion.
        pad: any token id of the vocabulary.
        poll_every: steps between looks at how many rows are live. A look waits for the device; in return rows that
            have ended are no longer fed, and the search stops when all have.
    """
    lengths_G = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    last_G = torch.tensor([prompt[-1] for prompt in prompts], device=model.device)
    cache = _prefill(model, prompts, pad, headroom=1 + width * min(steps, COMPACT_EVERY))
    active_G = torch.arange(len(prompts), device=model.device)
    slots, rows = root_slots(last_G), 1
    history: list[tuple[Tensor, Slots]] = []
    for step in range(steps):
        logits_GSV = _feed(model, cache, slots.tokens_GW[:, :rows].clamp(min=0), lengths_G - 1 + step)
        slots = chooser.choose(logits_GSV, slots)
        history.append((active_G, slots))
        if step + 1 == steps:
            break
        previous_rows, rows = rows, slots.live_GW.shape[1]
        if (step + 1) % poll_every == 0:
            rows = _last_live(slots.live_GW)
            if rows == 0:
                break
        cache.descend(slots.parents_GW[:, :rows].clamp(max=previous_rows - 1))
        if (step + 1) % COMPACT_EVERY == 0:
            kept = _unfinished(slots.live_GW)
            cache.compact(slots.live_GW[:, :rows], kept)
            if kept is not None:
                active_G, lengths_G, slots = active_G[kept], lengths_G[kept], slots.keep(kept)
                chooser.keep(kept)
    return _trace(history, len(prompts), width)


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, headroom: int) -> TreeCache:
    """Keys and values of all prompt tokens but the last, which becomes the root of the tree.

    Prompts are padded on the right, where a causal mask alone hides the padding from every prompt token.
    """
    places = max(len(prompt) for prompt in prompts) - 1
    padded = [[*prompt[:-1], *[pad] * (places + 1 - len(prompt))] for prompt in prompts]
    ids_GP = torch.tensor(padded, dtype=torch.long, device=model.device)
    lengths_G = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    positions_P = torch.arange(places, device=model.device)
    cache = TreeCache(model.config.num_hidden_layers, headroom, positions_P < lengths_G[:, None], model.dtype)
    if places:
        model.base_model(
            input_ids=ids_GP,
            attention_mask=torch.ones_like(ids_GP),
            position_ids=positions_P.expand_as(ids_GP),
            past_key_values=cache,
            use_cache=True,
        )
    return cache


def _feed(model: PreTrainedModel, cache: TreeCache, ids_GS: Tensor, positions_G: Tensor) -> Tensor:
    """Add a node per row; returns the fp32 logits [G, S, V] of what follows it."""
    return model(
        input_ids=ids_GS,
        attention_mask=cache.add_nodes(ids_GS.shape[1]),
        position_ids=positions_G[:, None].expand_as(ids_GS),
        past_key_values=cache,
        use_cache=True,
    ).logits.float()


def _last_live(live_GW: Tensor) -> int:
    """Number of slots up to the last live one of any prompt."""
    places_W = torch.arange(1, live_GW.shape[1] + 1, device=live_GW.device)
    return int((live_GW * places_W).max())


def _unfinished(live_GW: Tensor) -> Tensor | None:
    """Indices of the prompts that have a live slot; None when all have."""
    live_G = live_GW.any(1)
    return None if bool(live_G.all()) else live_G.nonzero().squeeze(1)


def _trace(history: Sequence[tuple[Tensor, Slots]], groups: int, width: int) -> Traces:
    """Follow the back-pointers from each prompt's last slots to the first."""
    device = history[0][0].device
    tokens_TGK = torch.full((len(history), groups, width), NO_TOKEN, device=device)
    logps_TGK = torch.zeros(len(history), groups, width, device=device)
    scores_GK = torch.full((groups, width), -torch.inf, dtype=torch.float64, device=device)
    pointers_GK = torch.arange(width, device=device).repeat(groups, 1)
    for active_G, slots in history:
        scores_GK[active_G, : slots.scores_GW.shape[1]] = slots.scores_GW
    for step in range(len(history) - 1, -1, -1):
        active_G, slots = history[step]
        # places beyond W hold no hypothesis: their score is -inf, whatever is copied here
        places_GK = pointers_GK[active_G].clamp(max=slots.parents_GW.shape[1] - 1)
        tokens_TGK[step, active_G] = slots.tokens_GW.gather(1, places_GK)
        logps_TGK[step, active_G] = slots.logps_GW.gather(1, places_GK)
        if step:
            pointers_GK[active_G] = slots.parents_GW.gather(1, places_GK)
    return Traces(
        tokens_GKT=tokens_TGK.permute(1, 2, 0).cpu(),
        logps_GKT=logps_TGK.permute(1, 2, 0).cpu(),
        scores_GK=scores_GK.cpu(),
        first_slots_GK=pointers_GK.cpu(),
    )
