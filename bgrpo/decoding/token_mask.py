"""Tokens that a policy may not write: while it decodes, and where its completions are scored.

They have probability 0, and the others share what is left: that is the policy's distribution for all purposes, so the
ratio of new to old probabilities starts at 1, and the KL to the reference at 0.

Shape letters: R rows, S scored places, V vocabulary, B a block of it, N forbidden tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from bgrpo.decoding.settings import DecodeSettings

_ALWAYS = torch.iinfo(torch.int64).max
_NEVER_SCORED = -1e30
"""Logit of a forbidden token where completions are scored. Finite, so that its part of the entropy is 0."""


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which tokens are forbidden where.

    Attributes:
        banned: forbidden everywhere.
        ends: forbidden as the first ``min_new_tokens`` tokens of a completion.
        min_new_tokens: see ``ends``.
    """

    banned: tuple[int, ...]
    ends: tuple[int, ...]
    min_new_tokens: int

    @classmethod
    def of(cls, settings: DecodeSettings) -> TokenMask | None:
        """What the settings forbid; None: nothing."""
        if not settings.banned_tokens and not settings.min_new_tokens:
            return None
        return cls(settings.banned_tokens, settings.end_tokens, settings.min_new_tokens)

    def scored(self, logits_SV: Tensor, depth_S: Tensor) -> Tensor:
        """The logits without the forbidden tokens, differentiable.

        Args:
            logits_SV: of the places whose next tokens are scored.
            depth_S: tokens of its completion that come before the place's next one.
        """
        if self.banned:
            logits_SV = logits_SV.index_fill(1, _ids(self.banned, logits_SV), _NEVER_SCORED)
        if self.min_new_tokens:
            ends_V = torch.zeros(logits_SV.shape[1], dtype=torch.bool, device=logits_SV.device)
            ends_V[_ids(self.ends, logits_SV)] = True
            early_S = depth_S < self.min_new_tokens
            logits_SV = logits_SV.masked_fill(early_S[:, None] & ends_V, _NEVER_SCORED)
        return logits_SV


class ForbiddenTokens:
    """A mask while a batch is decoded, all of whose completions are equally long at each step.

    Args:
        mask: what is forbidden.
        device: of the logits.
    """

    def __init__(self, mask: TokenMask, device: torch.device) -> None:
        until = dict.fromkeys(mask.ends, mask.min_new_tokens) if mask.min_new_tokens else {}
        until |= dict.fromkeys(mask.banned, _ALWAYS)
        self._ids = sorted(until)
        self._ids_N = torch.tensor(self._ids, device=device)
        self._until_N = torch.tensor([until[token] for token in self._ids], device=device)

    def at(self, step: Tensor) -> Penalties:
        """What is added to logits at a step, from 0, a scalar on the device; nothing here waits for it."""
        values_N = torch.zeros(len(self._ids), device=step.device).masked_fill_(step < self._until_N, -torch.inf)
        return Penalties(self._ids, self._ids_N, values_N)


@dataclass(frozen=True, slots=True)
class Penalties:
    """What is added to the logits of some tokens.

    Attributes:
        ids: the tokens, increasing.
        ids_N: the same.
        values_N: 0 or -inf.
    """

    ids: list[int]
    ids_N: Tensor
    values_N: Tensor

    def add_to(self, logits_RB: Tensor, start: int) -> None:
        """Change the logits of a block of the vocabulary that begins with token ``start``."""
        those = slice(bisect_left(self.ids, start), bisect_left(self.ids, start + logits_RB.shape[1]))
        if those.start < those.stop:
            values_RN = self.values_N[those].expand(len(logits_RB), -1)
            logits_RB.index_add_(1, self.ids_N[those] - start, values_RN)


def _ids(tokens: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(tokens, device=like.device)
