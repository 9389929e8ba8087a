"""Texts that end a completion with the token that completes them. Shape letters as in :mod:`bgrpo.decoding.slots`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bgrpo.decoding.slots import NO_TOKEN, Chooser, RowLogits, Rows, Slots

TextOf = Callable[[Sequence[int]], str]
"""The text of a completion's tokens."""

_FURTHER = 8  # tokens of a window beyond those that a stop text may span


class StopStrings:
    """Finds where completions end.

    A stop text counts where it ends in the text of a token after the first ``min_new_tokens``, wherever it begins in
    the completion, within tokens or across them; the prompt is not looked at.

    Args:
        texts: none of them empty.
        text_of: gives the text of tokens.
        min_new_tokens: tokens that complete nothing.
    """

    def __init__(self, texts: Sequence[str], text_of: TextOf, min_new_tokens: int = 0) -> None:
        self._texts = texts
        self._text_of = text_of
        self._min_new_tokens = min_new_tokens
        # each token gives a byte of UTF-8 or more, but for those that alone have no text
        self._window = max(len(text.encode()) for text in texts) + _FURTHER
        self._has_text: dict[int, bool] = {}

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the completion ends with the last of its tokens, given that it has not ended before."""
        if len(tokens) <= self._min_new_tokens:
            return False
        nearby = self._text_of(tokens[self._start(tokens) :])
        return any(text in nearby for text in self._texts) and self.place(tokens) is not None

    def cut(self, tokens: Sequence[int]) -> str:
        """The text of a completion before the first stop text that counts; all of it where there is none."""
        return self._text_of(tokens)[: self.place(tokens)]

    def place(self, tokens: Sequence[int]) -> int | None:
        """Where in the completion's text the first stop text that counts begins; None where there is none."""
        if len(tokens) <= self._min_new_tokens:
            return None
        whole = self._text_of(tokens)
        spared = len(self._text_of(tokens[: self._min_new_tokens])) if self._min_new_tokens else 0
        found = [whole.find(text, max(0, spared - len(text) + 1)) for text in self._texts]
        return min((place for place in found if place >= 0), default=None)

    def _start(self, tokens: Sequence[int]) -> int:
        """Of the last tokens, whose text holds every stop text that the last one may complete."""
        missing = self._window
        for place in range(len(tokens) - 1, -1, -1):
            token = tokens[place]
            if token not in self._has_text:
                self._has_text[token] = bool(self._text_of([token]))
            missing -= self._has_text[token]
            if not missing:
                return place
        return 0


class StoppingChooser:
    """Another chooser, whose completions also end with a stop text: an ended one keeps its slot and its score.

    Args:
        chooser: of tokens.
        stop: finds ends.
        prompts: G.
        group_size: K.
    """

    waits = True

    def __init__(self, chooser: Chooser, stop: StopStrings, prompts: int, group_size: int) -> None:
        self.roots = chooser.roots
        self._chooser = chooser
        self._stop = stop
        self._written: list[list[list[int]]] = [[[] for _ in range(group_size)] for _ in range(prompts)]

    def choose(self, logits: RowLogits, rows: Rows, slots: Slots, step: Tensor) -> Slots:
        """See :meth:`bgrpo.decoding.slots.Chooser.choose`."""
        slots = self._chooser.choose(logits, rows, slots, step)
        parents, tokens, live = (of.tolist() for of in (slots.parents_GK, slots.tokens_GK, slots.live_GK))
        for g, before in enumerate(self._written):
            self._written[g] = [
                before[parent] if token == NO_TOKEN else [*before[parent], token]
                for parent, token in zip(parents[g], tokens[g], strict=True)
            ]
            live[g] = [
                on and not self._stop.ends(written) for on, written in zip(live[g], self._written[g], strict=True)
            ]
        return replace(slots, live_GK=torch.tensor(live, device=slots.live_GK.device))
