"""Gradient checkpointing: layers keep their inputs alone, and compute the rest again for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from bgrpo.learning.matrix_products import OneDNNProducts


def recompute_layers(model: PreTrainedModel) -> None:
    """From now on, in training mode, the model's layers keep their inputs only; the gradients stay the same.

    Nothing in it is drawn at random, so no random state is kept. What a layer's forward pass was computed with, its
    attention of packed groups and the products, is there again when it is computed a second time.

    Raises:
        ValueError: the model cannot; :func:`bgrpo.runs.preparation.check_input` refuses it.
    """
    options = {
        "use_reentrant": False,
        "preserve_rng_state": False,
        "context_fn": partial(_contexts, model.config),
    }
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _contexts(config: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of a layer's first pass, where it is called, and of its second."""
    return contextlib.nullcontext(), _as_before(config, config._attn_implementation)


@contextlib.contextmanager
def _as_before(config: Any, attention: str) -> Iterator[None]:
    now = config._attn_implementation
    config._attn_implementation = attention
    try:
        with OneDNNProducts():
            yield
    finally:
        config._attn_implementation = now
