"""Every loss by its formula, one completion after another; shares no code with the package or TRL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from learner_cases import row_logps
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.groups import ScoredGroup

CLIPPING = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")


def row_entropies(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    return torch.distributions.Categorical(logits=logits[len(prompt) - 1 : -1]).entropy()


def policy_terms(new: Tensor, old: Tensor, advantage: float | Tensor, options: dict[str, Any]) -> Tensor:
    """What the policy's loss is made of, one term per token, without any mean."""
    loss, log_ratio = options["loss"], new - old
    sequence = options.get("importance_sampling_level") == "sequence" or loss == "luspo"
    ratio = (log_ratio.mean() if sequence else log_ratio).exp().expand(len(new))
    low = options.get("epsilon", 0.2)
    if loss in CLIPPING:
        clipped = ratio.clamp(1 - low, 1 + options.get("epsilon_high", low))
        return -torch.min(ratio.clamp(max=options.get("delta", math.inf)) * advantage, clipped * advantage)
    if loss == "cispo":
        return -ratio.clamp(max=options.get("epsilon_high", 5.0)).detach() * advantage * new
    if loss == "sapo":
        given = {"temperature_pos": 1.0, "temperature_neg": 1.05} | options.get("sapo", {})
        heat = given["temperature_pos" if advantage > 0 else "temperature_neg"]
        return -4 / heat * torch.sigmoid(heat * (ratio - 1)) * advantage
    assert loss == "vespo"
    given = {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0} | options.get("vespo", {})
    sign = "pos" if advantage >= 0 else "neg"
    weight = log_ratio.sum().exp().detach()
    if "weights" in options:
        weight = weight * options["weights"].prod()
    gamma = weight ** given[f"k_{sign}"] * (given[f"lambda_{sign}"] * (1 - weight)).exp()
    return -gamma * advantage * new


def kl_terms(new: Tensor, reference: Tensor, old: Tensor, options: dict[str, Any]) -> Tensor:
    k = {"k1": new - reference, "k2": (new - reference) ** 2 / 2}
    estimate = k.get(options.get("kl_estimator", "k3"), (reference - new).exp() - 1 - (reference - new))
    if not options.get("kl_bias_correction"):
        return estimate
    ratio = new - old
    return estimate * (ratio.mean() if options.get("importance_sampling_level") == "sequence" else ratio).exp()


def written_out_loss(
    model: PreTrainedModel,
    groups: Sequence[ScoredGroup],
    values: Sequence[Sequence[Any]],
    options: dict[str, Any],
    *,
    old: PreTrainedModel,
    reference: PreTrainedModel,
    longest: int,
    weights: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of one minibatch.

    Args:
        model: differentiated.
        groups: of the minibatch.
        values: their advantages: of a completion, or of each of its tokens.
        options: of ``learner``; ``loss`` is named.
        old: the policy at the start of the step.
        reference: of the KL.
        longest: ``rollout.max_new_tokens``.
        weights: from old and rollout log-probabilities of a completion to its importance weights.
    """
    rows = [
        (group.prompt_ids, completion, value)
        for group, some in zip(groups, values, strict=True)
        for completion, value in zip(group.completions, some, strict=True)
        if completion.finished or not options.get("mask_truncated")
    ]
    entropies = [row_entropies(model, prompt, completion.tokens) for prompt, completion, _ in rows]
    quantile = options.get("top_entropy_quantile", 1.0)
    threshold = torch.cat(entropies).detach().quantile(1 - quantile) - 1e-6 if quantile < 1 else -1.0
    terms, extra = [], options.get("beta", 0.01) * (not options.get("kl_in_reward"))
    for (prompt, completion, value), entropy in zip(rows, entropies, strict=True):
        new = row_logps(model, prompt, completion.tokens)
        with torch.no_grad():
            before, ref = row_logps(old, prompt, completion.tokens), row_logps(reference, prompt, completion.tokens)
        given = torch.ones_like(new) if weights is None else weights(before, torch.tensor(completion.logprobs).double())
        known = options if weights is None else options | {"weights": given}
        term = policy_terms(new, before, value, known) * (entropy.detach() >= threshold)
        if options["loss"] != "vespo":  # which has the weights in its own
            term = term * given
        terms.append(term + extra * kl_terms(new, ref, before, options))
    loss, tokens = options["loss"], sum(map(len, terms))
    if loss in ("grpo", "sapo"):
        total = sum(term.mean() for term in terms) / len(terms)
    elif loss == "dr_grpo":
        total = sum(term.sum() for term in terms) / (len(terms) * longest)
    elif loss == "luspo":
        total = sum(term.sum() for term in terms) / len(terms)
    else:
        total = sum(term.sum() for term in terms) / tokens
    every = torch.cat(entropies)
    return total - options.get("entropy_coef", 0.0) * every[every >= threshold].mean()
