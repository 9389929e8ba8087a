"""Every type of model: what it learns from is what it decoded, and its gradient is that of separate rows."""

from __future__ import annotations

import copy

import pytest
import torch
from decoding.tiny_models import FAMILIES, PLAIN, ragged_prompts, tiny_model
from transformers import PreTrainedModel

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import pad_groups

VOCABULARY = 11


def gradient(model: PreTrainedModel) -> torch.Tensor:
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return torch.cat([one.double().reshape(-1) for one in grads])


def separate_rows(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities of a completion's tokens, differentiable."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


@pytest.mark.parametrize("kind", sorted(FAMILIES | PLAIN))
def test_the_first_step_has_no_kl_and_the_gradient_of_separate_rows(kind: str) -> None:
    model = tiny_model(kind, VOCABULARY, seed=1)
    prompts = ragged_prompts(3, VOCABULARY, seed=0, longest=14)
    decoded = DecodeEngine(model).decode(prompts, DecodeSettings("sample", 4, 8, 2, 0), seeds=range(3))
    groups = [(group.prompt_ids, [completion.tokens for completion in group.completions]) for group in decoded]
    old = torch.tensor([logp for group in decoded for completion in group.completions for logp in completion.logprobs])
    weights_BC = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).double()
    rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
    for (prompt, completion), weights_C in zip(rows, weights_BC, strict=True):
        (separate_rows(exact, prompt, completion) * weights_C[: len(completion)]).sum().backward()

    for lay_out in (pad_groups, *([pack_groups] if kind in FAMILIES else [])):
        laid_out = lay_out(groups, "cpu", rows=13)
        logps_BC, entropies_BC = laid_out.logps(model)
        difference = logps_BC[laid_out.mask_BC].double() - old
        assert (difference.exp() - difference - 1).mean() < 1e-6
        assert not logps_BC[12].any() and not entropies_BC[12].any() and not laid_out.mask_BC[12].any()
        model.zero_grad()
        (logps_BC[:12] * weights_BC[:, : logps_BC.shape[1]]).sum().backward()
        assert (gradient(model) - gradient(exact)).norm() <= 1e-5 * gradient(exact).norm()
