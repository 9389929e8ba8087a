"""Tokens that a policy may not write: while it decodes, and where its completions are scored.

They have probability 0, and the others share what is left: that is the policy's distribution for all purposes, so the
ratio of new to old probabilities starts at 1, and the KL to the reference at 0.

Shape letters: R rows, S scored places, V vocabulary, B a block of it, N forbidden tokens, E pairs of a place and an
allowed token; of completions B, and C tokens of the longest.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bgrpo.decoding.allowed import Allowed, Walk
from bgrpo.decoding.settings import DecodeSettings

_ALWAYS = torch.iinfo(torch.int64).max
_NEVER_SCORED = -1e30
"""Logit of a forbidden token where completions are scored. Finite, so that its part of the entropy is 0."""


class CompletionMask(Protocol):
    """What completions cannot have, where they are scored."""

    def places(self, source_BC: Tensor, tokens_BC: Tensor, mask_BC: Tensor, scored: int) -> Tensor:
        """Of each scored place what decides what is forbidden there, a number, [S].

        Args:
            source_BC: which place predicts each token; any where there is no token.
            tokens_BC: of the completions, padded on the right.
            mask_BC: True at tokens.
            scored: number of scored places S.
        """
        ...

    def scored(self, logits_SV: Tensor, place_S: Tensor) -> Tensor:
        """The logits without the forbidden tokens, differentiable.

        Args:
            logits_SV: of the places whose next tokens are scored.
            place_S: of them, as :meth:`places` gives it.
        """
        ...


def mask_of(settings: DecodeSettings) -> CompletionMask | None:
    """What the settings forbid; None: nothing."""
    if settings.allowed is not None:
        return AllowedMask(settings.allowed)
    return TokenMask.of(settings)


class AllowedMask:
    """All but what is allowed; see :class:`CompletionMask`.

    Args:
        allowed: the same for every prompt.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._walks: dict[torch.device, Walk] = {}

    def _on(self, device: torch.device) -> Walk:
        if device not in self._walks:
            self._walks[device] = self._allowed.on(device)
        return self._walks[device]

    def places(self, source_BC: Tensor, tokens_BC: Tensor, mask_BC: Tensor, scored: int) -> Tensor:
        """Nodes of the completions so far."""
        walk = self._on(source_BC.device)
        (root,) = walk.roots([[]])
        place_S = torch.zeros(scored, dtype=torch.long, device=source_BC.device)
        nodes_B = root.expand(len(tokens_BC))
        for source_B, tokens_B, mask_B in zip(source_BC.T, tokens_BC.T, mask_BC.T, strict=True):
            place_S[source_B[mask_B]] = nodes_B[mask_B]
            nodes_B = walk.follow(nodes_B, tokens_B)
        return place_S

    def scored(self, logits_SV: Tensor, place_S: Tensor) -> Tensor:
        """See :class:`CompletionMask`."""
        rows_E, tokens_E = self._on(logits_SV.device).edges(place_S)
        others_SV = torch.ones_like(logits_SV, dtype=torch.bool)
        others_SV[rows_E, tokens_E] = False
        return logits_SV.masked_fill(others_SV, _NEVER_SCORED)


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

    def places(self, source_BC: Tensor, tokens_BC: Tensor, mask_BC: Tensor, scored: int) -> Tensor:
        """Tokens of its completion that come before the one that a place predicts."""
        depth_S = torch.zeros(scored, dtype=torch.long, device=source_BC.device)
        depth_BC = torch.arange(source_BC.shape[1], device=source_BC.device).expand_as(source_BC)
        depth_S[source_BC[mask_BC]] = depth_BC[mask_BC]
        return depth_S

    def scored(self, logits_SV: Tensor, place_S: Tensor) -> Tensor:
        """See :class:`CompletionMask`."""
        if self.banned:
            logits_SV = logits_SV.index_fill(1, _ids(self.banned, logits_SV), _NEVER_SCORED)
        if self.min_new_tokens:
            ends_V = torch.zeros(logits_SV.shape[1], dtype=torch.bool, device=logits_SV.device)
            ends_V[_ids(self.ends, logits_SV)] = True
            early_S = place_S < self.min_new_tokens
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


class Forbids(Protocol):
    """Something that some rows cannot have."""

    def add_to(self, logits_RB: Tensor, start: int, first: int) -> None:
        """Change the logits of a block of the vocabulary from token ``start`` on, of rows from ``first`` on."""
        ...


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

    def add_to(self, logits_RB: Tensor, start: int, first: int) -> None:
        """See :class:`Forbids`; the same for all rows."""
        those = slice(bisect_left(self.ids, start), bisect_left(self.ids, start + logits_RB.shape[1]))
        if those.start < those.stop:
            values_RN = self.values_N[those].expand(len(logits_RB), -1)
            logits_RB.index_add_(1, self.ids_N[those] - start, values_RN)


def _ids(tokens: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(tokens, device=like.device)
