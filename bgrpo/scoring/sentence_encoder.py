"""Coherence of a completion with its prompt: the cosine of their embeddings by a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgrpo.errors import UserError
from bgrpo.policies.classifier import read_base
from bgrpo.policies.io import loading
from bgrpo.scoring.fixed_shapes import FixedShapes, telling_memory
from bgrpo.scoring.reward_model import DTYPES, ENCODE_ERRORS, kept_tokens, longest_text
from bgrpo.scoring.scored_text import Item, Messages, Score, is_text, shorten


class EmbeddingSimilarity:
    """Scores completions by what a sentence encoder says of prompt and completion: from -1 to 1.

    An embedding is the mean of the last layer over all tokens, special ones included, of length 1 (Reimers and
    Gurevych 2019). Of a chat the texts of its messages count, joined by line ends, but for those of the system.
    The same texts get the same score, bit for bit, whatever they are scored with, as those of
    :class:`bgrpo.scoring.reward_model.RewardModel`.

    Args:
        path: of an encoder: a directory in Hugging Face format (safetensors only), or a model id of the Hub.
        max_tokens: longest prompt, and longest completion; default: what the encoder takes.
        truncate: longer ones are failures (``refuse``), or lose tokens on the left (``cut``), which every score tells.
        dtype: ``fp32`` or ``bf16``.
        device: where the weights go.

    Raises:
        UserError: the encoder cannot be loaded, or an argument does not fit it.
    """

    def __init__(
        self,
        path: str,
        max_tokens: int | None = None,
        truncate: str = "refuse",
        dtype: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        with loading("sentence encoder", path) as folder:
            whole, self.tokenizer = read_base(folder, seed=0, dtype=DTYPES[dtype])  # its head is not used
            if whole.config.is_encoder_decoder:
                raise UserError("has a decoder, whose states stand for no text; give an encoder")
        model: Any = whole.base_model.to(device).eval()
        self.limit = longest_text(f"sentence encoder {path}", model, self.tokenizer, max_tokens)
        self.path = path
        self._truncate = truncate
        self._shapes = FixedShapes(model, self.limit, outputs=mean_pooled)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """A score for every item, in order. Equal texts are computed once."""
        pairs = [(self._encode("prompt", item.prompt), self._encode("completion", item.completion)) for item in items]
        texts = [
            kept_tokens(ids, self.limit, self.tokenizer) for pair in pairs for ids in pair if isinstance(ids, list)
        ]
        with telling_memory(f"sentence encoder {self.path}"):
            vectors = {tuple(texts[place]): np.array(vector) for place, vector in self._shapes.logits(texts)}
        return [self._compare(*pair, vectors) for pair in pairs]

    def _encode(self, what: str, value: str | Messages) -> list[int] | Score:
        try:
            ids: list[int] = self.tokenizer(_plain(value))["input_ids"]
        except ENCODE_ERRORS as error:
            return Score(failure=f"the encoder's tokenizer failed: {type(error).__name__}: {shorten(error)}")
        if not ids:
            return Score(failure=f"the {what} has no tokens")
        if self._truncate == "refuse" and self.limit is not None and len(ids) > self.limit:
            return Score(failure=f"the {what} has {len(ids)} tokens, the sentence encoder takes {self.limit}")
        return ids

    def _compare(
        self, prompt: list[int] | Score, completion: list[int] | Score, vectors: dict[tuple[int, ...], np.ndarray]
    ) -> Score:
        if isinstance(prompt, Score) or isinstance(completion, Score):
            return prompt if isinstance(prompt, Score) else Score(failure=completion.failure)  # type: ignore[union-attr]
        kept = [kept_tokens(ids, self.limit, self.tokenizer) for ids in (prompt, completion)]
        cut = len(prompt) + len(completion) - len(kept[0]) - len(kept[1])
        one, other = (vectors[tuple(ids)] for ids in kept)
        norm = float(np.linalg.norm(one) * np.linalg.norm(other))
        if not (np.isfinite(norm) and norm > 0):
            return Score(None, "the sentence encoder's output is zero or not finite", cut)
        return Score(float(np.clip(one @ other / norm, -1.0, 1.0)), "", cut)


def mean_pooled(outputs: Any, mask_RL: Tensor) -> Tensor:
    """Mean of the last layer over the tokens that a mask keeps, in fp32: [rows, width]."""
    weights_RL1 = mask_RL[:, :, None].float()
    return (outputs.last_hidden_state.float() * weights_RL1).sum(1) / weights_RL1.sum(1)


def _plain(value: str | Messages) -> str:
    if isinstance(value, str):
        return value
    if not is_text(value):
        raise TypeError("expected text, or messages with role and content")
    return "\n".join(message["content"] for message in value if message["role"] != "system")
