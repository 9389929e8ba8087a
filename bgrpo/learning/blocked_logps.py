"""Log-probabilities and entropies from a model's last hidden states, without all of its logits at a time.

For each block of scored places the head's logits are made, used and dropped; the backward pass makes them again. So
their memory does not grow with the number of places, whatever the vocabulary. The head multiplies in fp32 at least,
also where weights and states are bf16.

Shape letters: S scored places, E width of the states, V vocabulary, N chosen tokens, R places of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bgrpo.decoding.logit_treatment import LogitTreatment
from bgrpo.decoding.token_mask import CompletionMask
from bgrpo.learning.matrix_products import times_transposed

LEARNER_LOGITS_AT_ONCE = 1 << 24
"""Most logits that the learner holds at a time: 64 MiB of fp32, and a few times that with what is made of them."""

_TOKENS_AT_ONCE = 16384  # rows of the head that are turned into fp32, or whose gradient is made, at a time


UNTREATED = LogitTreatment()


@dataclass(frozen=True, slots=True)
class LogitUse:
    """What becomes of the head's products before their softmax.

    Attributes:
        treatment: what the model does to its logits.
        temperature: divides them afterwards.
        mask: tokens that completions cannot have; None: they can have all.
        place_S: of each place, for the mask.
    """

    treatment: LogitTreatment = UNTREATED
    temperature: float = 1.0
    mask: CompletionMask | None = None
    place_S: Tensor | None = None

    def __call__(self, logits_RV: Tensor, block: slice) -> Tensor:
        """The logits of the distribution, of the places of a block; in the same memory where there is no mask."""
        treated = self.treatment(logits_RV)
        if self.mask is not None and self.place_S is not None:
            treated = self.mask.scored(treated, self.place_S[block])
        return treated if self.temperature == 1 else treated.div_(self.temperature)

    def backward(self, grad_RV: Tensor, used_RV: Tensor) -> Tensor:
        """Gradient of the products from that of the logits, in its memory; ``used_RV`` is overwritten."""
        if self.temperature != 1:
            grad_RV.div_(self.temperature)
            used_RV.mul_(self.temperature)
        return self.treatment.backward(grad_RV, used_RV)


def blocked_logps(
    states_SE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    source_N: Tensor,
    tokens_N: Tensor,
    use: LogitUse,
    entropy_gradient: bool,
    logits_at_once: int = LEARNER_LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen tokens, differentiable, and the entropies of the distributions, in nats.

    Args:
        states_SE: what the head takes.
        weight_VE: of the head.
        bias_V: of the head, or None.
        source_N: the place that predicts each chosen token.
        tokens_N: the chosen tokens.
        use: what becomes of the logits.
        entropy_gradient: the entropies are differentiable too.
        logits_at_once: most of them that are held at a time.

    Returns:
        ``logps_N`` and ``entropies_S``, at least fp32.
    """
    order_N = source_N.argsort(stable=True)
    rows = max(1, logits_at_once // len(weight_VE))
    options = (use, entropy_gradient, rows)
    logps_N, entropies_S = _BlockedLogps.apply(
        states_SE, weight_VE, bias_V, source_N[order_N], tokens_N[order_N], *options
    )
    return torch.zeros_like(logps_N).index_copy(0, order_N, logps_N), entropies_S


class _BlockedLogps(torch.autograd.Function):
    """The tokens come in the order of their places."""

    @staticmethod
    def forward(
        ctx: Any,
        states_SE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        source_N: Tensor,
        tokens_N: Tensor,
        use: LogitUse,
        entropy_gradient: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.use, ctx.rows = use, rows
        dtype = torch.promote_types(states_SE.dtype, torch.float32)
        lse_S, entropies_S = (states_SE.new_empty(len(states_SE), dtype=dtype) for _ in range(2))
        logps_N = states_SE.new_empty(len(source_N), dtype=dtype)
        for block, chosen in _blocks(len(states_SE), source_N, rows):
            logits_RV = use(_logits(states_SE[block], weight_VE, bias_V), block)
            lse_R = lse_S[block] = logits_RV.logsumexp(-1)
            logps_N[chosen] = (
                logits_RV[source_N[chosen] - block.start, tokens_N[chosen]] - lse_R[source_N[chosen] - block.start]
            )
            probabilities_RV = (logits_RV - lse_R[:, None]).exp_()
            entropies_S[block] = lse_R - logits_RV.mul_(probabilities_RV).sum(-1)
        ctx.save_for_backward(states_SE, weight_VE, bias_V, source_N, tokens_N, lse_S, entropies_S)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies_S)
        ctx.set_materialize_grads(False)
        return logps_N, entropies_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        states_SE, weight_VE, bias_V, source_N, tokens_N, lse_S, entropies_S = ctx.saved_tensors
        grad_N, of_entropies_S = grads
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_states = torch.zeros_like(states_SE) if needs_states else None
        of_weight = torch.zeros_like(weight_VE, dtype=lse_S.dtype) if needs_weight else None
        of_bias = torch.zeros_like(bias_V, dtype=lse_S.dtype) if needs_bias else None
        grad_N = lse_S.new_zeros(len(source_N)) if grad_N is None else grad_N
        for block, chosen in _blocks(len(states_SE), source_N, ctx.rows):
            states_RE = states_SE[block]
            logits_RV = ctx.use(_logits(states_RE, weight_VE, bias_V), block)
            places = source_N[chosen] - block.start
            total_R = lse_S.new_zeros(len(states_RE)).index_add_(0, places, grad_N[chosen])
            # d log p(token) = onehot(token) - p;  d entropy = -p (log p + entropy)
            lse_R1 = lse_S[block, None]
            factor = -total_R[:, None]
            if of_entropies_S is not None:
                factor = factor - of_entropies_S[block, None] * (logits_RV - lse_R1 + entropies_S[block, None])
            grad_RV = (logits_RV - lse_R1).exp_().mul_(factor)
            grad_RV.index_put_((places, tokens_N[chosen]), grad_N[chosen], accumulate=True)
            grad_RV = ctx.use.backward(grad_RV, logits_RV)
            del logits_RV
            if of_bias is not None:
                of_bias += grad_RV.sum(0)
            of_block = torch.zeros_like(states_RE, dtype=grad_RV.dtype)
            for part, weight in _parts(weight_VE, grad_RV.dtype):
                if of_states is not None:
                    of_block += times_transposed(grad_RV[:, part], weight.t())
                if of_weight is not None:
                    of_weight[part] += times_transposed(grad_RV[:, part].t(), states_RE.t().to(grad_RV.dtype))
            if of_states is not None:
                of_states[block] = of_block
        found = ((of_states, states_SE), (of_weight, weight_VE), (of_bias, bias_V))
        return *(None if grad is None else grad.to(like.dtype) for grad, like in found), *(None,) * 5


def _blocks(places: int, source_N: Tensor, rows: int) -> Iterator[tuple[slice, slice]]:
    """Places of each block, and which of the tokens, ordered by place, are predicted there."""
    starts = list(range(0, places, rows))
    edges = torch.searchsorted(source_N, torch.tensor([*starts, places], device=source_N.device)).tolist()
    for start, first, last in zip(starts, edges, edges[1:], strict=False):
        yield slice(start, min(start + rows, places)), slice(first, last)


def _logits(states_RE: Tensor, weight_VE: Tensor, bias_V: Tensor | None) -> Tensor:
    dtype = torch.promote_types(states_RE.dtype, torch.float32)
    logits_RV = states_RE.new_empty(len(states_RE), len(weight_VE), dtype=dtype)
    for part, weight in _parts(weight_VE, dtype):
        bias = None if bias_V is None else bias_V[part].to(dtype)
        logits_RV[:, part] = times_transposed(states_RE.to(dtype), weight, bias)
    return logits_RV


def _parts(weight_VE: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The head's weights, some tokens at a time, in the dtype of the products."""
    for start in range(0, len(weight_VE), _TOKENS_AT_ONCE):
        part = slice(start, start + _TOKENS_AT_ONCE)
        yield part, weight_VE[part].to(dtype)
