"""Rows of an encoder-decoder on the plain path: the encoder reads each prompt once, the decoder one row per hypothesis.

Shape letters as in :mod:`bgrpo.decoding.slots`; P places of a prompt, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from bgrpo.decoding.encoding import decoder_options, encode, start_token


def cache_argument(takes: Collection[str]) -> str | None:
    """What a model's forward pass calls its cache; None where it takes none."""
    return next((name for name in ("cache", "past_key_values", "cache_params") if name in takes), None)


class DecoderRows:
    """See :class:`bgrpo.decoding.plain_search.ReadRows`: the rows of decoders, whose first token starts them.

    Args:
        model: an encoder-decoder.
        takes: the arguments of its forward pass.
        prompts: token ids.
        cached: whether rows go on from the model's cache.
    """

    def __init__(
        self, model: PreTrainedModel, takes: Collection[str], prompts: Sequence[Sequence[int]], cached: bool
    ) -> None:
        self._model = model
        self._cached = cached
        self._argument = cache_argument(takes)
        self._cache: EncoderDecoderCache | None = None
        self._states_RPE, self._mask_RP = encode(model, prompts)
        self._prompt_R = torch.arange(len(prompts), device=model.device)
        self._ids_RL = torch.full((len(prompts), 1), start_token(model), device=model.device)

    @property
    def has_cache(self) -> bool:
        """See :class:`bgrpo.decoding.plain_search.ReadRows`."""
        return self._cache is not None

    def read(self) -> Tensor:
        """See :class:`bgrpo.decoding.plain_search.ReadRows`."""
        new = self._ids_RL.shape[1] if self._cache is None else 1
        options: dict[str, Any] = {"use_cache": self._cached}
        options |= decoder_options(self._model, self._states_RPE, self._mask_RP)
        if self._cache is not None and self._argument is not None:
            options[self._argument] = self._cache
        outputs = self._model(decoder_input_ids=self._ids_RL[:, -new:], **options)
        kept = outputs.get(self._argument) if self._cached and self._argument is not None else None
        self._cache = kept if isinstance(kept, EncoderDecoderCache) else None
        return outputs.logits[:, -1].to(torch.float32, copy=True)

    def go_on(self, rows_R: Tensor, ids_R: Tensor) -> Tensor:
        """See :class:`bgrpo.decoding.plain_search.ReadRows`."""
        self._ids_RL = torch.cat((self._ids_RL[rows_R], ids_R[:, None]), 1)
        prompt_R, self._prompt_R = self._prompt_R, self._prompt_R[rows_R]
        stays = torch.equal(prompt_R, self._prompt_R)  # then keys and values of the prompts are where they should be
        if not stays:
            self._states_RPE, self._mask_RP = self._states_RPE[rows_R], self._mask_RP[rows_R]
        if self._cache is not None:
            parts: list[Cache] = [self._cache.self_attention_cache]
            for part in parts if stays else [*parts, self._cache.cross_attention_cache]:
                part.reorder_cache(rows_R)  # type: ignore[arg-type]  # int64 is what is meant
        return self.read()
