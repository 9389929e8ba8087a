"""What an encoder makes of prompts, and how the decoder gets it.

Each passage of a prompt goes through the encoder alone. The decoder's cross-attention reads the states of all of them,
one behind the other (Fusion-in-Decoder, Izacard and Grave 2021); a prompt of one passage is the usual case.

Shape letters: G prompts, P places of a prompt (all its passages), E width of the encoder's states.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.groups import passages_of

_TOKENS_AT_ONCE = 4096  # of the encoder's pass; bounds the memory of activations


def start_token(model: PreTrainedModel) -> int:
    """The token that the decoder begins with; see :func:`bgrpo.policies.io.load_policy`, which sets it."""
    found = getattr(model.config, "decoder_start_token_id", None)
    if not isinstance(found, int):
        found = model.generation_config.decoder_start_token_id if model.generation_config is not None else None
    if not isinstance(found, int):
        raise UserError("the model names no token that its decoder starts with: set decoder_start_token_id")
    return found


def encode(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The encoder's states of every prompt, each passage read once; differentiable where gradients are on.

    Args:
        model: an encoder-decoder.
        prompts: token ids, see :func:`bgrpo.groups.passages_of`; no passage is empty.

    Returns:
        ``states_GPE``, zero where a prompt has fewer places than others, and ``mask_GP``, int64, 1 at its places.
    """
    states = encode_apart(model, prompts)
    mask_GP = pad_sequence([torch.ones(len(each), dtype=torch.long, device=model.device) for each in states], True)
    return pad_sequence(states, True), mask_GP


def encode_apart(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """As :func:`encode`: the states of each prompt, [P, E], as many as it has places."""
    passages = [passages_of(prompt) for prompt in prompts]
    places = sorted((len(ids), g, n) for g, of_prompt in enumerate(passages) for n, ids in enumerate(of_prompt))
    found: dict[tuple[int, int], Tensor] = {}
    for batch in _batches(places):
        longest = batch[-1][0]
        rows = [passages[g][n] for _, g, n in batch]
        ids_NL = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in rows], device=model.device)
        mask_NL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=model.device)
        states_NLE = model.get_encoder()(input_ids=ids_NL, attention_mask=mask_NL)[0]
        found |= {(g, n): states_NLE[row, :length] for row, (length, g, n) in enumerate(batch)}
    return [torch.cat([found[g, n] for n in range(len(of_prompt))]) for g, of_prompt in enumerate(passages)]


def _batches(places: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Passages, given from the shortest on, a few tokens at a time."""
    batches: list[list[tuple[int, int, int]]] = [[]]
    for place in places:
        if batches[-1] and (len(batches[-1]) + 1) * place[0] > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(place)
    return batches


def decoder_options(model: nn.Module, states_RPE: Tensor, mask_RP: Tensor) -> dict[str, Any]:
    """What a model's forward pass takes for prompts that :func:`encode` has read, one per row."""
    takes = inspect.signature(model.forward).parameters.keys()
    options: dict[str, Any] = {"encoder_outputs": (states_RPE,), "attention_mask": mask_RP}
    return {name: value for name, value in options.items() if name in takes}
