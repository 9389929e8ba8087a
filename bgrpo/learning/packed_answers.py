"""Log-probabilities of whole groups by a T5: every passage is encoded once, and every shared answer token decoded once.

The decoder's row holds, group by group, the trie of its completions under the token that starts them. A node attends to
the nodes above it and to itself, with the bias of how far above they are; and to what the encoder has read of its
group's prompt. The results are those of separate rows, because a token's logits depend on its prompt and on the nodes
above it only. Gradients reach the encoder, and the table of the biases, once for all completions.

Shape letters: T places of the row, G groups, P longest prompt, M most nodes of a group, R paths, C longest path, H
heads, D their width, E width of the states, V vocabulary; B completions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bgrpo.decoding.attention_apart import UNSCALED
from bgrpo.decoding.attention_rules import HIDDEN
from bgrpo.decoding.encoding import encode_apart, start_token
from bgrpo.decoding.t5_layers import T5Decoder, in_heads
from bgrpo.groups import NEXT_PASSAGE
from bgrpo.learning.encoder_groups import Groups
from bgrpo.learning.forward_pass import ChosenTokens, Scoring
from bgrpo.learning.packed_attention import as_rows, attend_written_out, batched
from bgrpo.learning.packing import build_trie, padded, paths_of, rounded_up, to_tensor

_START = -1  # stands for the token that starts the decoder, which the model knows


@dataclass(frozen=True, slots=True)
class PackedAnswers:
    """See :class:`bgrpo.learning.padded_rows.LaidOutGroups`.

    Attributes:
        prompts: of the groups, see :func:`bgrpo.groups.passages_of`.
        ids_1T: the nodes of all groups, then fillers.
        prompt_GP: places of each prompt among those of all prompts, padded with its last.
        hidden_GP: True at what pads them; None where they are equally long.
        node_GM: places in the row of each group's nodes, padded with its last.
        node_slot: of each node, in order, in ``node_GM``.
        path_RC: places in the row of the nodes on a path from the start, padded with its last.
        path_slot: of each node, in order, in ``path_RC``: on the path that owns it.
        source_BC: of the place that predicts this token.
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    prompts: tuple[Sequence[int], ...]
    ids_1T: Tensor
    prompt_GP: Tensor
    hidden_GP: Tensor | None
    node_GM: Tensor
    node_slot: Tensor
    path_RC: Tensor
    path_slot: Tensor
    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor

    def logps(self, model: nn.Module, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`bgrpo.learning.packing.packed_logps`."""
        own: Any = getattr(model, "module", model)

        def run() -> Tensor:
            with _packed_pass(own):
                logits_1TV: Tensor = model(packed=self).logits  # through the wrapper, which prepares for the gradient
            return logits_1TV

        chosen = ChosenTokens(self.source_BC, self.tokens_BC, self.mask_BC)
        return (scoring or Scoring()).logps(model, run, lambda logits_1TV: logits_1TV[0], self.ids_1T.shape[1], chosen)


@contextmanager
def _packed_pass(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model's forward pass takes packed groups."""
    before = model.__dict__.get("forward")  # a wrapper may have set one
    decoder = T5Decoder(model)  # type: ignore[arg-type]  # a model of transformers

    def forward(packed: PackedAnswers) -> SimpleNamespace:
        attends = _PackedAttends(packed, decoder, torch.cat(encode_apart(model, packed.prompts))[None])  # type: ignore[arg-type]
        ids_1T = torch.where(packed.ids_1T == _START, start_token(model), packed.ids_1T)  # type: ignore[arg-type]
        states_1TE = decoder.states(ids_1T, attends, decoder.biases())
        return SimpleNamespace(logits=model.get_output_embeddings()(states_1TE))  # type: ignore[operator]

    model.forward = forward
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


class _PackedAttends:
    """See :class:`bgrpo.decoding.attention_apart.AttendsApart`; differentiable."""

    def __init__(self, packed: PackedAnswers, decoder: T5Decoder, states_1PE: Tensor) -> None:
        self._packed = packed
        self._decoder = decoder
        self._states_1PE = states_1PE

    def attend_path(self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, bias_HB: Tensor) -> Tensor:
        places = self._packed.path_RC
        query, key, value = (batched(states.transpose(0, 1), places) for states in (query_HRD, key_HRD, value_HRD))
        place_C = torch.arange(places.shape[1], device=places.device)
        back_CC = place_C[:, None] - place_C
        bias_HCC = bias_HB[:, back_CC.clamp(0, bias_HB.shape[1] - 1)].masked_fill(back_CC < 0, HIDDEN)
        found, _ = attend_written_out(query, key, value, False, bias_HCC, UNSCALED)
        return self._filled_up(as_rows(found)[self._packed.path_slot])

    def attend_prompt(self, layer: int, query_HRD: Tensor) -> Tensor:
        cross: Any = self._decoder.cross[layer // 2]
        key, value = (
            batched(in_heads(product(self._states_1PE), cross).transpose(0, 1), self._packed.prompt_GP)
            for product in (cross.k, cross.v)
        )
        query, hidden_GP = batched(query_HRD.transpose(0, 1), self._packed.node_GM), self._packed.hidden_GP
        bias = None
        if hidden_GP is not None:
            bias = query.new_zeros(hidden_GP.shape).masked_fill_(hidden_GP, HIDDEN)[:, None, None]
            bias = bias.expand(-1, 1, query.shape[2], -1)
        found = functional.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
        return self._filled_up(as_rows(found)[self._packed.node_slot])

    def _filled_up(self, found_NHD: Tensor) -> Tensor:
        """With zeros for what fills up the row."""
        return functional.pad(found_NHD, (0, 0, 0, 0, 0, self._packed.ids_1T.shape[1] - len(found_NHD)))


def pack_answers(groups: Groups, device: torch.device | str, rows: int = 0) -> PackedAnswers:
    """Lay out groups, none of them empty; arguments as :func:`bgrpo.learning.packing.pack_groups`."""
    completions = [completion for _, of_group in groups for completion in of_group]
    tries = [build_trie([(_START, *completion) for completion in of_group]) for _, of_group in groups]
    starts = np.cumsum([0, *(len(trie.tokens) for trie in tries)])
    node_GM, node_slot = padded([np.arange(start, end) for start, end in itertools.pairwise(starts)])
    ends = np.cumsum([0, *(len(prompt) - list(prompt).count(NEXT_PASSAGE) for prompt, _ in groups)])
    prompt_GP, _ = padded([np.arange(start, end) for start, end in itertools.pairwise(ends)])
    hidden_GP = np.arange(prompt_GP.shape[1]) >= np.diff(ends)[:, None]
    path_RC, path_slot = paths_of(tries, starts)
    shape = (max(len(completions), rows), max(2, *map(len, completions)))  # TRL takes one column for one value per row
    source_BC, tokens_BC, mask_BC = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    paths = (start + np.asarray(path) for start, trie in zip(starts, tries, strict=False) for path in trie.paths)
    for row, (completion, path) in enumerate(zip(completions, paths, strict=True)):
        source_BC[row, : len(path)] = path
        tokens_BC[row, : len(completion)] = completion
        mask_BC[row, : len(completion)] = True
    ids = rounded_up([token for trie in tries for token in trie.tokens])
    return PackedAnswers(
        prompts=tuple(prompt for prompt, _ in groups),
        ids_1T=torch.tensor([ids], device=device),
        prompt_GP=to_tensor(prompt_GP, device),
        hidden_GP=to_tensor(hidden_GP, device) if hidden_GP.any() else None,
        node_GM=to_tensor(node_GM, device),
        node_slot=to_tensor(node_slot, device),
        path_RC=to_tensor(path_RC, device),
        path_slot=to_tensor(path_slot, device),
        source_BC=to_tensor(source_BC, device),
        tokens_BC=to_tensor(tokens_BC, device),
        mask_BC=to_tensor(mask_BC, device),
    )
