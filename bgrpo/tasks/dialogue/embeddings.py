"""Texts as vectors, by a sentence encoder; a text's vector depends on nothing else that is read with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bgrpo.errors import UserError
from bgrpo.policies.classifier import read_base
from bgrpo.policies.io import loading


class TextEncoder:
    """The mean of an encoder's last layer over all tokens, special ones included.

    Args:
        path: a directory in Hugging Face format (safetensors only), or a model id of the Hub.

    Raises:
        UserError: it cannot be loaded, or has a decoder.
    """

    def __init__(self, path: str) -> None:
        with loading("sentence encoder", path) as folder:
            whole, self._tokenizer = read_base(folder, seed=0)  # its head is not used
            if whole.config.is_encoder_decoder:
                raise UserError("has a decoder, whose states stand for no text; give an encoder")
        self._model: Any = whole.base_model.eval()
        self._path = path
        limit = getattr(whole.config, "max_position_embeddings", None)
        self._limit = limit if isinstance(limit, int) and limit > 0 else None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of texts, fp32; longer ones than the encoder takes are cut.

        Raises:
            UserError: a text has no tokens for the encoder, or its vector is not made of numbers.
        """
        return np.stack([self._vector(text) for text in texts])

    @torch.inference_mode()
    def _vector(self, text: str) -> np.ndarray:
        options = {"truncation": True, "max_length": self._limit} if self._limit else {}
        ids = self._tokenizer(text, **options)["input_ids"]
        if not ids:
            raise UserError(f"sentence encoder {self._path}: the text {text[:60]!r} has no tokens")
        states_1LE = self._model(input_ids=torch.tensor([ids])).last_hidden_state
        vector_E: np.ndarray = states_1LE[0].float().mean(0).numpy()
        if not np.isfinite(vector_E).all():
            raise UserError(f"sentence encoder {self._path}: its output for {text[:60]!r} is not made of numbers")
        return vector_E
