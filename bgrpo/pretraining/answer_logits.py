"""The logits of a batch of supervised lines, by a causal language model, or by an encoder-decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.decoding.encoding import decoder_options, encode, start_token
from bgrpo.pretraining.supervised_lines import Lines, collate, collate_for_encoder

Collate = Callable[[Lines, np.ndarray], dict[str, Any]]
"""A batch from all lines and the indices of some."""


def collate_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collate:
    """How batches are made for a model."""
    if model.config.is_encoder_decoder:
        return functools.partial(collate_for_encoder, start_token=start_token(model))
    return functools.partial(collate, filler=tokenizer.eos_token_id)


def answer_logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Logits after each of ``batch["input_ids"]``; differentiable, the encoder's pass too.

    Args:
        model: or its DDP wrapper.
        batch: of :func:`collate_for`.
    """
    own: Any = getattr(model, "module", model)
    ids_BT = batch["input_ids"].to(own.device)
    if "prompts" not in batch:
        return model(input_ids=ids_BT, use_cache=False).logits
    states_BPE, mask_BP = encode(own, [prompt.tolist() for prompt in batch["prompts"]])
    options = decoder_options(own, states_BPE, mask_BP)
    return model(decoder_input_ids=ids_BT, use_cache=False, **options).logits
