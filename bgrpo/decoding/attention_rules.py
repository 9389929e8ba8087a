"""What a layer's attention asks for besides queries, keys and values, and the plain formula of it.

Shape letters: B a batch, H heads, L queries, S keys, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bgrpo.errors import UserError

HIDDEN = -1e30
"""Added to a score that does not count. Finite, so that a query that sees nothing has a result, of weight 0."""

_NOT_READ = frozenset(
    ("position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
)
_QUERIES_AT_ONCE = 512  # of a whole prompt


@dataclass(frozen=True, slots=True)
class AttentionRules:
    """How a layer's scores are made.

    Attributes:
        scale: of the products of queries and keys.
        window: places that a token sees, its own the last of them; None: all.
        cap: scores become ``cap * tanh(score / cap)``; None: they stay.
    """

    scale: float
    window: int | None = None
    cap: float | None = None

    def within(self, tokens: int) -> AttentionRules:
        """The same for rows of so many tokens: a window that none of them leaves is none."""
        if self.window is None or tokens > self.window:
            return self
        return AttentionRules(self.scale, None, self.cap)


def rules_of(module: nn.Module, query: Tensor, arguments: Mapping[str, Any]) -> AttentionRules:
    """From what a model's layer hands to its attention function.

    Args:
        module: the layer's attention.
        query: its queries.
        arguments: everything that is handed over by name.

    Raises:
        UserError: an argument that is not known here, which would change the result; or dropout.
    """
    known = {"scaling", "sliding_window", "softcap", "dropout"}
    unknown = [name for name in sorted(arguments.keys() - known - _NOT_READ) if arguments[name] not in (None, False)]
    if unknown:
        raise UserError(
            f"{type(module).__name__} asks its attention for {', '.join(unknown)}, which is not known here: "
            f"use rollout.engine=plain"
        )
    if arguments.get("dropout"):
        raise RuntimeError(f"this model's attention drops {arguments['dropout']:g}: switch its dropout off")
    scale, window, cap = (arguments.get(name) for name in ("scaling", "sliding_window", "softcap"))
    return AttentionRules(query.shape[-1] ** -0.5 if scale is None else scale, window or None, cap or None)


def masked_attention(
    query_BHLD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, mask: Tensor | None, rules: AttentionRules
) -> Tensor:
    """Attention under an additive mask, on any device; key-value heads may be fewer. The window is in the mask."""
    grouped = query_BHLD.shape[1] != key_BHSD.shape[1]
    if rules.cap is None:
        return functional.scaled_dot_product_attention(
            query_BHLD, key_BHSD, value_BHSD, mask, scale=rules.scale, enable_gqa=grouped
        )
    if grouped:
        shared = query_BHLD.shape[1] // key_BHSD.shape[1]
        key_BHSD, value_BHSD = (states.repeat_interleave(shared, 1) for states in (key_BHSD, value_BHSD))
    scores_BHLS = rules.cap * ((query_BHLD @ key_BHSD.mT) * (rules.scale / rules.cap)).tanh()
    if mask is not None:
        scores_BHLS += mask
    return scores_BHLS.softmax(-1) @ value_BHSD


def causal_attention(query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, rules: AttentionRules) -> Tensor:
    """Attention of whole rows without padding, each token to those before it, as far as the window goes."""
    places = query_BHLD.shape[2]
    rules = rules.within(places)
    if rules.window is None and rules.cap is None:
        grouped = query_BHLD.shape[1] != key_BHLD.shape[1]
        return functional.scaled_dot_product_attention(
            query_BHLD, key_BHLD, value_BHLD, is_causal=True, scale=rules.scale, enable_gqa=grouped
        )
    outputs = []
    for start in range(0, places, _QUERIES_AT_ONCE):
        end = min(start + _QUERIES_AT_ONCE, places)
        first = 0 if rules.window is None else max(0, start + 1 - rules.window)
        mask = band(range(start, end), range(first, end), rules.window, query_BHLD)
        outputs.append(
            masked_attention(
                query_BHLD[:, :, start:end], key_BHLD[:, :, first:end], value_BHLD[:, :, first:end], mask, rules
            )
        )
    return torch.cat(outputs, 2)


def band(queries: range, keys: range, window: int | None, like: Tensor) -> Tensor:
    """Additive mask [L, S]: a query sees its own place and those before it, as far as the window goes."""
    back_LS = torch.arange(queries.start, queries.stop, device=like.device)[:, None] - torch.arange(
        keys.start, keys.stop, device=like.device
    )
    hidden_LS = back_LS < 0 if window is None else (back_LS < 0) | (back_LS >= window)
    return torch.zeros(hidden_LS.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden_LS, HIDDEN)
