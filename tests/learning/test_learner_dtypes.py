"""A learner in bf16: as near to the exact numbers as torch's own autocast, and steps that rounding does not swallow."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding.tiny_models import FAMILIES, PLAIN, ragged_prompts, tiny_model
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import pad_groups
from bgrpo.learning.stochastic_rounding import StochasticallyRounded, round_stochastically

VOCABULARY = 11


def rows(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probabilities of a completion's tokens by the model's own forward pass."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)[
        torch.arange(len(completion)), torch.tensor(completion)
    ]


def gradient(model: PreTrainedModel) -> Tensor:
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return torch.cat([one.double().reshape(-1) for one in grads])


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "gpt_neox", "llama", "mixtral", "phi3", "qwen3", "bloom", "mamba"])
@pytest.mark.parametrize("pure", [False, True])
def test_as_near_to_the_exact_numbers_as_the_model_by_itself(kind: str, pure: bool) -> None:
    """Against float64; the model by itself computes in bf16 too, one row per completion."""
    exact = tiny_model(kind, VOCABULARY, seed=1)
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    model = copy.deepcopy(exact)
    if pure:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    exact = exact.double()
    generator = torch.Generator().manual_seed(2)
    prompts = ragged_prompts(3, VOCABULARY, seed=0, longest=14)
    groups = [(prompt, torch.randint(0, VOCABULARY, (4, 8), generator=generator).tolist()) for prompt in prompts]
    pairs = [(prompt, completion) for prompt, completions in groups for completion in completions]

    wanted = torch.stack([rows(exact, *pair) for pair in pairs])
    wanted.sum().backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=not pure):
        by_itself = torch.stack([rows(model, *pair) for pair in pairs])
    by_itself.sum().backward()
    error = float((by_itself - wanted).detach().abs().mean())
    gradient_error = float((gradient(model) - gradient(exact)).norm())

    for lay_out in (pad_groups, *([pack_groups] if kind in FAMILIES else [])):
        model.zero_grad()
        logps_BC, _ = lay_out(groups, "cpu").logps(model, Scoring(arithmetic="fp32" if pure else "bf16"))
        logps_BC.sum().backward()
        assert logps_BC.dtype == torch.float32
        assert 0 < (logps_BC - wanted).abs().mean() < 1.5 * error
        assert (gradient(model) - gradient(exact)).norm() < 1.5 * gradient_error


def test_rounding_by_chance_goes_to_neighbours_and_is_right_on_average() -> None:
    values = torch.tensor([1.0, -3.5, 1 + 2**-9, -1e-30, 7.1, 0.0, 3e38])
    draws = torch.stack([round_stochastically(values, np.random.SFC64(seed)).double() for seed in range(4000)])
    below = (values.view(torch.int32) & -65536).view(torch.float32).double()
    above = ((values.view(torch.int32) & -65536) + 65536).view(torch.float32).double()
    assert ((draws == below) | (draws == above)).all()
    for exact in (0, 1, 5):
        assert (draws[:, exact] == values[exact]).all()
    spread = (above - below).abs() / 2 / 4000**0.5
    assert ((draws.mean(0) - values.double()).abs() <= 5 * spread).all()
    assert torch.equal(round_stochastically(values, np.random.SFC64(7)), draws[7].to(torch.bfloat16))


def test_steps_too_small_for_bf16_add_up() -> None:
    """1,000 steps of 1e-4 from 1.0, where bf16's next number below is 1 - 1/256: nearest rounding would stay at 1."""
    weight = torch.nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    steps = itertools.count()
    optimizer = StochasticallyRounded(torch.optim.SGD([weight], lr=1e-4), 3, lambda: next(steps))
    weight.grad = torch.ones_like(weight)
    for _ in range(1000):
        optimizer.step()
    assert weight.dtype == torch.bfloat16 and abs(float(weight.float().mean()) - 0.9) < 1e-3


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_pure_bf16_follows_fp32_and_keeps_all_of_it_in_bf16(tmp_path: Path, name: str) -> None:
    weights = {}
    for dtype in ("fp32", "pure_bf16"):
        source = ScriptedSource()
        config = train_config(steps=6, learner={"optimizer": name, "dtype": dtype, "learning_rate": 2e-3, "beta": 0.1})
        trainer = make_trainer(config, source, tmp_path)
        trainer.run()
        weights[dtype] = source.weights
    state = trainer.optimizer.state_dict()["state"]
    kept = [value for of_weight in state.values() for key, value in of_weight.items() if key != "step"]
    tensors = [value for value in kept if isinstance(value, Tensor)]
    assert all(each.dtype == torch.bfloat16 for each in [*tensors, *trainer._policy.parameters()])
    assert all(each.dtype == torch.bfloat16 for each in trainer.ref_model.parameters())
    assert bool(tensors) == (name != "sgd")
    moved, expected = (weights[dtype][6] - weights[dtype][0] for dtype in ("pure_bf16", "fp32"))
    rounding = 6**0.5 * float((weights["fp32"][0].abs() * 2**-8).norm())  # of six steps, each less than one unit
    assert (moved - expected).norm() < rounding + 0.2 * expected.norm()
    assert torch.cosine_similarity(moved, expected, dim=0) > (0.8 if name != "sgd" else 0)


@pytest.mark.parametrize("reference", [None, "fp32", "bf16"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "pure_bf16"])
def test_the_first_step_has_no_kl_to_a_reference_of_the_same_kind(
    tmp_path: Path, dtype: str, reference: str | None
) -> None:
    steps: list[dict[str, float]] = []
    learner = {"dtype": dtype, "beta": 0.5, "rollout_correction": {"kind": "truncate"}}
    config = train_config(learner=learner | {"reference": {"dtype": reference}})
    trainer = make_trainer(config, ScriptedSource(), tmp_path, policy=tiny_policy(), on_step=steps.append)
    trainer.run()
    halves = [parameter.dtype == torch.bfloat16 for parameter in trainer.ref_model.parameters()]
    assert any(halves) == (reference == "bf16" or (reference is None and dtype != "fp32"))
    assert all(halves) == (any(halves) and dtype != "bf16")
    same = any(halves) == (dtype != "fp32") or dtype == "bf16"  # autocast rounds the products' weights by itself
    assert (steps[0]["kl"] == 0) == same and steps[0]["kl"] < 0.01 < steps[1]["kl"]
    assert "mismatch/kl" in steps[0]


def test_without_a_weight_of_the_kl_there_is_no_reference(tmp_path: Path) -> None:
    trainer = make_trainer(train_config(learner={"beta": 0.0}), ScriptedSource(), tmp_path)
    assert trainer.ref_model is None
    with pytest.raises(UserError, match=r"reference\.dtype=bf16 needs a KL: beta=0 has none"):
        train_config(learner={"beta": 0.0, "reference": {"dtype": "bf16"}})


def test_moves_that_bf16_would_lose_are_refused() -> None:
    sync = {"sync_every": 1, "mixing": 0.3}
    with pytest.raises(
        UserError, match=r"reference\.mixing=0\.3: a reference in bf16 .* at least 0\.5, or .*dtype=fp32"
    ):
        train_config(learner={"dtype": "bf16", "reference": sync})
    assert (
        train_config(learner={"dtype": "bf16", "reference": sync | {"dtype": "fp32"}}).learner.reference.mixing == 0.3
    )


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(UserError, match=r"dtype=pure_bf16: optimizer=adamw_8bit .* use dtype=bf16"):
        train_config(learner={"dtype": "pure_bf16", "optimizer": "adamw_8bit"})


def test_every_type_of_model_learns_in_bf16() -> None:
    for kind in FAMILIES | PLAIN:
        model = tiny_model(kind, VOCABULARY, seed=1)
        lay_out = pack_groups if kind in FAMILIES else pad_groups
        logps_BC, _ = lay_out([([3, 4], [[5, 1], [2, 1]])], "cpu").logps(model, Scoring(arithmetic="bf16"))
        logps_BC.sum().backward()
        assert gradient(model).isfinite().all() and gradient(model).any(), kind
