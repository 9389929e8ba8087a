"""Encoder-decoders: what is learned from is what was decoded, and the gradient is that of separate rows."""

from __future__ import annotations

import copy

import pytest
import torch
from decoding.test_encoder_decoders import PROMPTS, VOCABULARY
from decoding.tiny_encoder_decoders import ENCODER_DECODERS, EOS, exact_states, tiny_encoder_decoder
from learning.test_families_learned import gradient
from transformers import PreTrainedModel

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.support import service_of
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packed_answers import pack_answers
from bgrpo.learning.padded_rows import lay_out_of
from bgrpo.learning.recomputation import recompute_layers


def separate_rows(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities of a completion's tokens, differentiable, the encoder's pass included."""
    ids = torch.tensor([[0, *completion[:-1]]])
    logits = model(encoder_outputs=(exact_states(model, prompt),), decoder_input_ids=ids, use_cache=False).logits[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


@pytest.mark.parametrize("kind", sorted(ENCODER_DECODERS))
def test_the_first_step_has_no_kl_and_the_gradient_of_separate_rows(kind: str) -> None:
    model = tiny_encoder_decoder(kind, VOCABULARY)
    decoded = DecodeEngine(model).decode(PROMPTS, DecodeSettings("sample", 4, 8, EOS, 0), seeds=range(len(PROMPTS)))
    groups = [(group.prompt_ids, [completion.tokens for completion in group.completions]) for group in decoded]
    old = torch.tensor([logp for group in decoded for completion in group.completions for logp in completion.logprobs])
    weights_BC = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).double()
    rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
    for (prompt, completion), weights_C in zip(rows, weights_BC, strict=True):
        (separate_rows(exact, prompt, completion) * weights_C[: len(completion)]).sum().backward()

    entropies = []
    for lay_out in {lay_out_of(service_of(model, engine)) for engine in ("auto", "plain")}:
        laid_out = lay_out(groups, "cpu", rows=17)
        logps_BC, entropies_BC = laid_out.logps(model)
        difference = logps_BC[laid_out.mask_BC].double() - old
        assert (difference.exp() - difference - 1).mean() < 1e-6
        assert not logps_BC[16].any() and not entropies_BC[16].any() and not laid_out.mask_BC[16].any()
        model.zero_grad()
        (logps_BC[:16] * weights_BC[:, : logps_BC.shape[1]]).sum().backward()
        assert (gradient(model) - gradient(exact)).norm() <= 1e-5 * gradient(exact).norm()
        entropies.append(entropies_BC)
    torch.testing.assert_close(entropies[0], entropies[-1])
    assert all(weight.grad.any() for name, weight in model.named_parameters() if "attention_bias" in name)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_layers_computed_again_and_logits_in_blocks_give_the_same_gradient(kind: str) -> None:
    groups = [(PROMPTS[2], [[5, 6, 7, 8], [5, 6, 3], [5, 6, 7, 1]]), (PROMPTS[1], [[4], [5, 2]])]
    found = []
    for again in (False, True):
        model = tiny_encoder_decoder(kind, VOCABULARY, dropout_rate=0.0).train()
        if again:
            recompute_layers(model)
        seen: list[int] = []
        model.get_decoder().embed_tokens.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given[0].numel())
        )
        laid_out = pack_answers(groups, "cpu")
        logps_BC, _ = laid_out.logps(model, Scoring(logits_at_once=40 if again else 1 << 20))
        logps_BC.exp().sum().backward()
        found.append((logps_BC, gradient(model)))
        assert seen[-1] == 32, "one row for all, rounded up"
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)
