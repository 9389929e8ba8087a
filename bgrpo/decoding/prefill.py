"""The prompts' own forward pass: keys and values of all prompt tokens but the last, which becomes the tree's root.

Prompts lie one behind the other in a single row, so that none is padded. Of the last layer only keys and values are
needed, so the pass ends there.

What an encoder has read becomes keys and values of every layer of the decoder; the tree's root is the decoder's start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.decoding.attention_rules import AttentionRules, causal_attention
from bgrpo.decoding.encoding import encode_apart, start_token
from bgrpo.decoding.t5_layers import T5Decoder, in_heads
from bgrpo.decoding.tree_attention import TreeStore, rounded
from bgrpo.groups import NEXT_PASSAGE

_TOKENS_AT_ONCE = 4096  # bounds the memory of activations


class _LastLayerReached(Exception):
    """Ends a forward pass whose remaining results nobody reads."""


class PromptPass:
    """Attention of one forward pass over whole prompts: causal within each, stored layer by layer.

    Args:
        store: keeps keys and values.
        first: index of the first prompt.
        runs: (prompts, places) of equally long prompts that follow each other.
        last_layer: where the pass ends.
    """

    def __init__(self, store: TreeStore, first: int, runs: Sequence[tuple[int, int]], last_layer: int) -> None:
        self._store = store
        self._first = first
        self._runs = runs
        self._last_layer = last_layer

    def attend(
        self, layer: int, query_HRD: Tensor, key_HRD: Tensor, value_HRD: Tensor, rules: AttentionRules
    ) -> Tensor:
        """See :class:`bgrpo.decoding.tree_attention.Attends`."""
        outputs = []
        first, start = self._first, 0
        for prompts, places in self._runs:
            end = start + prompts * places
            query, key, value = (
                states[:, start:end].unflatten(1, (prompts, places)).transpose(0, 1)
                for states in (query_HRD, key_HRD, value_HRD)
            )
            key, value = (rounded(states, self._store.kept) for states in (key, value))
            self._store.add_prompts(layer, first, key, value)
            if layer < self._last_layer:
                output_GHPD = causal_attention(query, key, value, rules)
                outputs.append(output_GHPD.transpose(1, 2).flatten(0, 1))
            first, start = first + prompts, end
        if layer == self._last_layer:
            raise _LastLayerReached
        return torch.cat(outputs)


def roots(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Of each prompt: places that :func:`prefill` keeps, and the token that its completions go on from."""
    if model.config.is_encoder_decoder:
        return [len(prompt) - prompt.count(NEXT_PASSAGE) for prompt in prompts], [start_token(model)] * len(prompts)
    return [len(prompt) - 1 for prompt in prompts], [prompt[-1] for prompt in prompts]


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], store: TreeStore) -> None:
    """Fill the store with the prompts.

    Args:
        model: see :func:`bgrpo.decoding.fast_layers.fast_layers`.
        prompts: none of them empty; those of one token have nothing to store, unless an encoder reads them.
        store: for exactly these prompts.
    """
    if model.config.is_encoder_decoder:
        _read_by_encoder(model, prompts, store)
        return
    for first, batch in _batches([prompt[:-1] for prompt in prompts]):
        ids_1R = torch.tensor([[token for prompt in batch for token in prompt]], device=model.device)
        positions_1R = torch.tensor([[place for prompt in batch for place in range(len(prompt))]], device=model.device)
        runs = [(len(list(same)), length) for length, same in itertools.groupby(map(len, batch))]
        tree = PromptPass(store, first, runs, model.config.num_hidden_layers - 1)
        try:
            model.base_model(
                input_ids=ids_1R,
                attention_mask=torch.ones_like(ids_1R),
                position_ids=positions_1R,
                use_cache=False,
                tree=tree,
            )
        except _LastLayerReached:
            continue
        raise RuntimeError(f"{type(model).__name__} has fewer layers than its configuration says")


def _read_by_encoder(model: PreTrainedModel, prompts: Sequence[Sequence[int]], store: TreeStore) -> None:
    states = encode_apart(model, prompts)
    states_1PE = torch.cat(states)[None]
    places = [len(of_prompt) for of_prompt in states]
    for number, attention in enumerate(T5Decoder(model).cross):
        key_HPD, value_HPD = (
            rounded(in_heads(product(states_1PE), attention), store.kept) for product in (attention.k, attention.v)
        )
        for prompt, (keys, values) in enumerate(zip(key_HPD.split(places, 1), value_HPD.split(places, 1), strict=True)):
            store.add_prompts(2 * number + 1, prompt, keys[None], values[None])


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Sequence[int]]]]:
    """Consecutive prompts of few tokens together, each batch with the index of its first; empty prompts end a batch."""
    batch: list[Sequence[int]] = []
    for index, prompt in enumerate(prompts):
        if batch and (not prompt or sum(map(len, batch)) + len(prompt) > _TOKENS_AT_ONCE):
            yield index - len(batch), batch
            batch = []
        if prompt:
            batch.append(prompt)
    if batch:
        yield len(prompts) - len(batch), batch
