"""Logits made in blocks against all of them at once: numbers, gradients, and the memory that they take."""

from __future__ import annotations

import pytest
import torch
from decoding.tiny_models import FAMILIES, PLAIN, ragged_prompts, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.decoding.logit_treatment import LogitTreatment
from bgrpo.decoding.token_mask import TokenMask
from bgrpo.learning import forward_pass
from bgrpo.learning.blocked_logps import LogitUse, blocked_logps
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import PaddedGroups, pad_groups

PLACES, WIDTH, VOCABULARY, CHOSEN = 13, 6, 19, 40


def head(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, weight and bias of a head in fp64, and chosen tokens: some places have several, some none."""
    generator = torch.Generator().manual_seed(seed)
    states, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((PLACES, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    source = torch.randint(0, PLACES - 2, (CHOSEN,), generator=generator)
    return states, weight, bias, source, torch.randint(0, VOCABULARY, (CHOSEN,), generator=generator)


@pytest.mark.parametrize("treatment", [LogitTreatment(), LogitTreatment(cap=2.0), LogitTreatment(divisor=1.7)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("rows", [1, 4, 13])
def test_numbers_and_gradients_are_those_of_torch(treatment: LogitTreatment, temperature: float, rows: int) -> None:
    states, weight, bias, source, tokens = head(rows)
    weights_N, weights_S = torch.randn(CHOSEN, dtype=torch.float64), torch.randn(PLACES, dtype=torch.float64)
    logits = states @ weight.T + bias
    if treatment.cap:
        logits = treatment.cap * torch.tanh(logits / treatment.cap)
    distribution = torch.distributions.Categorical(logits=logits / (treatment.divisor or 1) / temperature)
    expected = distribution.logits[source, tokens], distribution.entropy()
    for with_entropies in (False, True):
        options = (LogitUse(treatment, temperature), with_entropies, rows * VOCABULARY)
        logps, entropies = blocked_logps(states, weight, bias, source, tokens, *options)
        assert (logps - expected[0]).abs().max() < 1e-10 and (entropies - expected[1]).abs().max() < 1e-10
        assert entropies.requires_grad == with_entropies
        objectives = [
            (logps_N * weights_N).sum() + ((entropies_S * weights_S).sum() if with_entropies else 0)
            for logps_N, entropies_S in ((logps, entropies), expected)
        ]
        found, wanted = (torch.autograd.grad(one, (states, weight, bias), retain_graph=True) for one in objectives)
        for gradient, reference in zip(found, wanted, strict=True):
            assert (gradient - reference).abs().max() < 1e-10


def test_a_frozen_head_gets_no_gradient_and_states_do() -> None:
    states, weight, _, source, tokens = head(1)
    logps, _ = blocked_logps(states, weight.detach(), None, source, tokens, LogitUse(), False, 40)
    logps.sum().backward()
    assert states.grad is not None and states.grad.any() and weight.grad is None


def gradients(model: PreTrainedModel) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in model.parameters()]
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite", "phi", "mamba"])
def test_a_model_learns_the_same_from_blocks(kind: str, tied: bool) -> None:
    model = tiny_model(kind, 11, seed=1, tie_word_embeddings=tied).double()
    precision = 1e-5 if kind == "mamba" else 1e-10  # whose logits are fp32 where they are made at once
    generator = torch.Generator().manual_seed(2)
    prompts = ragged_prompts(3, 11, seed=0)
    groups = [(prompt, torch.randint(4, 7, (4, 6), generator=generator).tolist()) for prompt in prompts]
    for lay_out in (pad_groups, *([pack_groups] if kind in FAMILIES else [])):
        laid_out = lay_out(groups, "cpu", rows=13)
        found, mask = [], TokenMask(banned=(3, 9), ends=(0, 7), min_new_tokens=2)
        for at_once in (1 << 20, 30):  # all of them; two or three places
            logps_BC, entropies_BC = laid_out.logps(model, Scoring(0.7, mask, True, logits_at_once=at_once))
            assert not logps_BC[~laid_out.mask_BC].any() and not entropies_BC[~laid_out.mask_BC].any()
            model.zero_grad()
            (logps_BC.square().sum() + entropies_BC.sin().sum()).backward()
            found.append((logps_BC.detach(), entropies_BC.detach(), gradients(model)))
        for blocked, whole in zip(found[1], found[0], strict=True):
            assert (blocked - whole).abs().max() < precision * whole.abs().max()


def test_blocks_are_for_models_whose_logits_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    understood = {kind: forward_pass.has_plain_head(tiny_model(kind)) for kind in [*FAMILIES, *PLAIN]}
    assert all(understood.values()), understood
    model = tiny_model("llama")
    call = type(model).forward

    def scaled(self: PreTrainedModel, **arguments: object) -> object:
        output = call(self, **arguments)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    groups: PaddedGroups = pad_groups([([3, 4], [[5, 1], [2, 1]])], "cpu")
    whole, blocked = (groups.logps(model, Scoring(logits_at_once=at_once))[0] for at_once in (1 << 20, 1))
    assert torch.equal(whole, blocked) and not forward_pass.has_plain_head(model)


def test_only_one_block_of_logits_is_held() -> None:
    """The largest tensors made, forward and backward, are those of a block and of the head's gradient."""
    places, width, vocabulary, at_once = 512, 8, 4096, 16 * 4096
    states, weight = torch.randn(places, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    source, tokens = torch.arange(places), torch.randint(0, vocabulary, (places,))
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            results = func(*args, **(kwargs or {}))
            for result in results if isinstance(results, tuple) else [results]:
                largest = max(largest, result.numel() if isinstance(result, Tensor) else 0)
            return results

    with Sizes():
        logps, _ = blocked_logps(states, weight, None, source, tokens, LogitUse(), False, at_once)
        logps.sum().backward()
    assert largest == at_once == places * vocabulary // 32
