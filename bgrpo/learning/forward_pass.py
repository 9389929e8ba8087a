"""How the learner runs a model over laid-out groups, and gets log-probabilities from what the model returns.

Shape letters: S scored places, E width of the last states, V vocabulary, B completions, C longest completion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bgrpo.decoding.logit_treatment import LogitTreatment
from bgrpo.decoding.token_mask import CompletionMask
from bgrpo.learning.blocked_logps import LEARNER_LOGITS_AT_ONCE, LogitUse, blocked_logps
from bgrpo.learning.matrix_products import OneDNNProducts

Arithmetic = Literal["fp32", "bf16"]
"""Of a forward pass and its gradient: as the weights are, or matrix products in bf16 (autocast)."""

_KNOWN: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
"""Whether a model does to its logits what its configuration says."""


@dataclass(frozen=True, slots=True)
class ChosenTokens:
    """Which scored place predicts which token.

    Attributes:
        source_BC: index of the place among the scored ones; any where there is no token.
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor

    def places(self, mask: CompletionMask | None, scored: int) -> Tensor | None:
        """Of each of so many scored places what the mask asks for; None without one."""
        return None if mask is None else mask.places(self.source_BC, self.tokens_BC, self.mask_BC, scored)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What log-probabilities are wanted, and how they are computed.

    Attributes:
        temperature: that the completions were drawn at; divides the logits.
        mask: tokens that they could not have; None: all could be.
        entropy_gradient: the entropies are differentiable too.
        arithmetic: see :data:`Arithmetic`.
        logits_at_once: more logits than these are made in blocks.
    """

    temperature: float = 1.0
    mask: CompletionMask | None = None
    entropy_gradient: bool = False
    arithmetic: Arithmetic = "fp32"
    logits_at_once: int = LEARNER_LOGITS_AT_ONCE

    def logps(
        self,
        model: nn.Module,
        run: Callable[[], Tensor],
        of_places: Callable[[Tensor], Tensor],
        scored: int,
        chosen: ChosenTokens,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every completion token, and the entropy of its distribution, in nats.

        Args:
            model: without dropout, or its DDP wrapper.
            run: calls the model and returns its logits.
            of_places: from logits of the model, or what its head takes, to those of the scored places, [S, …].
            scored: number of scored places S.
            chosen: the completion tokens.

        Returns:
            ``logps_BC`` (differentiable) and ``entropies_BC``, at least fp32, and 0 outside the completions.
        """
        base: Any = getattr(model, "module", model)
        head = base.get_output_embeddings()
        vocabulary = 0 if head is None else head.weight.shape[0]
        rounded = self.arithmetic == "bf16" or base.dtype == torch.bfloat16
        with contextlib.ExitStack() as stack:
            stack.enter_context(OneDNNProducts())
            if self.arithmetic == "bf16":
                stack.enter_context(torch.autocast(base.device.type, torch.bfloat16))
            blocks = (rounded or scored * vocabulary > self.logits_at_once) and has_plain_head(base)
            states = stack.enter_context(_caught_states(head)) if blocks else []
            logits = run()
        if not blocks:
            return self._picked(of_places(logits), chosen)
        mask_BC = chosen.mask_BC
        logps_N, entropies_S = blocked_logps(
            of_places(states.pop()),
            head.weight,
            head.bias,
            chosen.source_BC[mask_BC],
            chosen.tokens_BC[mask_BC],
            LogitUse(LogitTreatment.of(base.config), self.temperature, self.mask, chosen.places(self.mask, scored)),
            self.entropy_gradient,
            self.logits_at_once,
        )
        logps_BC = logps_N.new_zeros(mask_BC.shape).masked_scatter(mask_BC, logps_N)
        return logps_BC, entropies_S[chosen.source_BC].masked_fill(~mask_BC, 0.0)

    def _picked(self, logits_SV: Tensor, chosen: ChosenTokens) -> tuple[Tensor, Tensor]:
        """From all logits at once."""
        logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
        place_S = chosen.places(self.mask, len(logits_SV))
        if self.mask is not None and place_S is not None:
            logits_SV = self.mask.scored(logits_SV, place_S)
        logps_SV = (logits_SV if self.temperature == 1 else logits_SV / self.temperature).log_softmax(-1)
        vocabulary = logps_SV.shape[-1]
        logps_BC = logps_SV.view(-1)[chosen.source_BC * vocabulary + chosen.tokens_BC]
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            entropies_S = -(logps_SV.exp() * logps_SV).sum(-1)
            entropies_BC = entropies_S[chosen.source_BC]
        return logps_BC.masked_fill(~chosen.mask_BC, 0.0), entropies_BC.masked_fill(~chosen.mask_BC, 0.0)


@contextlib.contextmanager
def _caught_states(head: nn.Module) -> Iterator[list[Tensor]]:
    """Meanwhile a model's head computes nothing; what it is given comes into the list."""
    caught: list[Tensor] = []

    def catch(states: Tensor) -> Tensor:
        caught.append(states)
        return states[..., :1].detach().clone()  # for what the model does to its logits, which nobody reads

    head.forward = catch  # hides the class's method
    try:
        yield caught
    finally:
        del head.forward


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are those of a linear layer, treated as the configuration says: tried once for each model."""
    if model not in _KNOWN:
        head: Any = model.get_output_embeddings()
        _KNOWN[model] = type(head) is nn.Linear and _treats_as_configured(model, head)
    return _KNOWN[model]


def _treats_as_configured(model: PreTrainedModel, head: nn.Linear) -> bool:
    given: list[Tensor] = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: given.append(output.clone()))
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            answer = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **answer).logits
    finally:
        hook.remove()
    return len(given) == 1 and torch.equal(LogitTreatment.of(model.config)(given[0]).to(logits.dtype), logits)
