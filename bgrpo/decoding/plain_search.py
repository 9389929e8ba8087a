"""The plain path: any language model, by its own forward pass over one row per hypothesis.

The hypotheses go on from the model's own cache where that can be put into another order, and are read anew where it
cannot. Prompts of unequal length are filled up on the left where the model allows for it, and are searched apart where
it does not. Both are found out by trying, once per model: what a model says of itself is not always so. An encoder
reads each prompt once, whatever the number of its rows; see :mod:`bgrpo.decoding.encoder_rows`.

Shape letters as in :mod:`bgrpo.decoding.slots`; L tokens of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from bgrpo.decoding.encoder_rows import DecoderRows, cache_argument
from bgrpo.decoding.search import Traces, trace
from bgrpo.decoding.slots import Chooser, Head, RowLogits, Rows, root_slots

MOST_ROWS = 256
"""Every row has keys and values of its own, those of the prompt too."""

_TOLERANCE = 3e-5  # of log-probabilities, relative; rounding is far below, a wrong position or a mixed-up row far above
_NO_OTHER_ORDER = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


class PlainSearch:
    """See :class:`bgrpo.decoding.batch_search.BatchSearch`.

    Args:
        model: a language model, causal or with an encoder.
        most_rows: bounds memory.
    """

    def __init__(self, model: PreTrainedModel, most_rows: int) -> None:
        self.most_rows = min(most_rows, MOST_ROWS)
        self._model = model
        self._takes = inspect.signature(model.forward).parameters.keys()
        self._cached: bool | None = None
        self._padded: bool | None = None

    @contextmanager
    def ready(self, rows: int) -> Iterator[None]:
        """Find out what the model allows, the first time."""
        if self._cached is None:
            self._cached, self._padded = self._cache_works(), self._padding_works()
        yield

    def takes_ragged(self) -> bool:
        """Whether this model ignores what fills up a row on its left."""
        return bool(self._padded)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], chooser: Chooser, group_size: int, steps: int) -> Traces:
        """See :class:`bgrpo.decoding.batch_search.BatchSearch`."""
        device = self._model.device
        rows_now = self._rows(prompts, bool(self._cached))
        logits_RV = rows_now.read()
        slots = root_slots(torch.tensor([prompt[-1] for prompt in prompts], device=device), group_size, chooser.roots)
        before_GK = torch.arange(len(prompts), device=device)[:, None].expand(-1, group_size)  # row of the last pass
        history = []
        for step in range(steps):
            rows = Rows.live(slots)
            if not len(rows.flat_R):
                break
            before_R = before_GK.flatten()[rows.flat_R]
            if step:
                logits_RV = rows_now.go_on(before_R, slots.tokens_GK.flatten()[rows.flat_R])
            else:
                logits_RV = logits_RV[before_R]
            vocabulary = Head((_themselves,), logits_RV.shape[1])
            places_GK = torch.zeros_like(slots.parents_GK)
            places_GK.view(-1)[rows.flat_R] = torch.arange(len(rows.flat_R), device=device) if step else before_R
            slots = chooser.choose(RowLogits(logits_RV, vocabulary), rows, slots, torch.tensor(step, device=device))
            history.append(slots)
            before_GK = places_GK.gather(1, slots.parents_GK)
        return trace(history)

    @torch.inference_mode()
    def _cache_works(self) -> bool:
        """Whether rows that change places go on as if each had been read anew."""
        prompts = [self._probe(5), self._probe(5, shift=1)]
        cached, anew = (self._rows(prompts, cached=cached) for cached in (True, False))
        for rows in (cached, anew):
            rows.read()
        if not cached.has_cache:
            return False
        order, ids = (torch.tensor(numbers, device=self._model.device) for numbers in ([1, 0, 0], [0, 0, 0]))
        ids[1] = self._probe(1, shift=2)[0]
        ids[2] = getattr(self._model.config, "pad_token_id", None) or 0  # some count positions without pads
        try:
            found = [cached.go_on(order, ids), cached.go_on(order, ids)]
        except _NO_OTHER_ORDER:  # how models say that their cache has only the one it was made in
            return False
        return all(_agree(one, anew.go_on(order, ids)) for one in found)

    @torch.inference_mode()
    def _padding_works(self) -> bool:
        """Whether a row that is filled up on the left gives what it gives alone, also when it goes on."""
        if self._model.config.is_encoder_decoder:
            return True  # or it would not have been loaded
        if not {"attention_mask", "position_ids"} <= self._takes or _is_stateful(self._model):
            return False
        short, long, cached = self._probe(2, shift=1), self._probe(5), bool(self._cached)
        together, alone = self._rows([long, short], cached), self._rows([short], cached)
        if not _agree(together.read()[1:], alone.read()):
            return False
        order, ids = (torch.tensor(numbers, device=self._model.device) for numbers in ([0, 1], [0, 0]))
        return _agree(together.go_on(order, ids)[1:], alone.go_on(order[:1], ids[:1]))

    def _rows(self, prompts: Sequence[Sequence[int]], cached: bool) -> ReadRows:
        if self._model.config.is_encoder_decoder:
            return DecoderRows(self._model, self._takes, prompts, cached)
        return _ModelRows(self._model, self._takes, prompts, cached)

    def _probe(self, length: int, shift: int = 0) -> list[int]:
        return [(3 * place + shift) % self._model.config.get_text_config().vocab_size for place in range(length)]


class ReadRows(Protocol):
    """Rows of tokens that a model reads, and goes on with in any order."""

    @property
    def has_cache(self) -> bool:
        """Whether the model gave a cache whose rows can be reordered."""
        ...

    def read(self) -> Tensor:
        """Logits after the last token of every row, fp32 [R, V]; the caller may change them."""
        ...

    def go_on(self, rows_R: Tensor, ids_R: Tensor) -> Tensor:
        """Logits of other rows: each is one of those before, by its place, and one more token."""
        ...


class _ModelRows:
    """Rows of a causal language model: prompts, and what follows them."""

    def __init__(self, model: PreTrainedModel, takes: Any, prompts: Sequence[Sequence[int]], cached: bool) -> None:
        self._model = model
        self._takes = takes
        self._cached = cached
        self._cache: Cache | None = None
        longest = max(map(len, prompts))
        self._padded = any(len(prompt) < longest for prompt in prompts)
        rows = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._ids_RL, self._mask_RL = (torch.tensor(numbers, device=model.device) for numbers in (rows, mask))

    @property
    def has_cache(self) -> bool:
        """See :class:`ReadRows`."""
        return self._cache is not None

    def read(self) -> Tensor:
        """See :class:`ReadRows`."""
        new = self._ids_RL.shape[1] if self._cache is None else 1
        options: dict[str, Any] = {"use_cache": self._cached}
        if "attention_mask" in self._takes and not _is_stateful(self._model):
            options["attention_mask"] = self._mask_RL
        if self._padded:
            options["position_ids"] = (self._mask_RL.cumsum(1) - 1).clamp_(min=0)[:, -new:]
        if "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        name = cache_argument(self._takes)
        if self._cache is not None and name is not None:
            options[name] = self._cache
        outputs = self._model(input_ids=self._ids_RL[:, -new:], **options)
        kept = outputs.get(name) if self._cached and name is not None else None
        self._cache = kept if isinstance(kept, Cache) else None
        return outputs.logits[:, -1].to(torch.float32, copy=True)

    def go_on(self, rows_R: Tensor, ids_R: Tensor) -> Tensor:
        """See :class:`ReadRows`."""
        self._ids_RL = torch.cat((self._ids_RL[rows_R], ids_R[:, None]), 1)
        self._mask_RL = torch.cat((self._mask_RL[rows_R], torch.ones_like(ids_R)[:, None]), 1)
        if self._cache is not None:
            self._cache.reorder_cache(rows_R)  # type: ignore[arg-type]  # int64 is what is meant
        return self.read()


def _agree(found_RV: Tensor, expected_RV: Tensor) -> bool:
    found_RV, expected_RV = found_RV.log_softmax(-1), expected_RV.log_softmax(-1)
    return bool((found_RV - expected_RV).abs().max() <= _TOLERANCE * (1 + expected_RV.abs().max()))


def _is_stateful(model: PreTrainedModel) -> bool:
    """Whether it keeps a state of its past, which would take in what fills up a row."""
    return bool(getattr(model, "_is_stateful", False))


def _themselves(logits_RV: Tensor) -> Tensor:
    return logits_RV
