"""Gradient checkpointing: the same numbers and gradients, and fewer tensors kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.tiny_models import FAMILIES, PLAIN, ragged_prompts, tiny_model
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import pad_groups
from bgrpo.learning.recomputation import recompute_layers
from bgrpo.runs.preparation import check_input, check_recomputable

CANNOT = {kind for kind in PLAIN if not tiny_model(kind).supports_gradient_checkpointing}


def learned(model: PreTrainedModel, laid_out: Any) -> tuple[Tensor, Tensor, int]:
    """Log-probabilities, gradients, and how many numbers the forward pass kept for the backward one."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps_BC, _ = laid_out.logps(model)
    logps_BC.square().sum().backward()
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return logps_BC.detach(), torch.cat([one.reshape(-1) for one in grads]), sum(kept.values())


@pytest.mark.parametrize("kind", sorted((FAMILIES | PLAIN).keys() - CANNOT))
def test_gradients_are_the_same_and_less_is_kept(kind: str) -> None:
    model = tiny_model(kind, 11, seed=1).train()
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "drop" in name or name == "p"]:
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)
    generator = torch.Generator().manual_seed(2)
    groups = [(p, torch.randint(0, 11, (4, 8), generator=generator).tolist()) for p in ragged_prompts(3, 11, seed=0)]
    layouts = [pad_groups(groups, "cpu"), *([pack_groups(groups, "cpu")] if kind in FAMILIES else [])]
    plain = [learned(model, laid_out) for laid_out in layouts]
    recompute_layers(model)
    for (logps, grads, kept), laid_out in zip(plain, layouts, strict=True):
        logps_again, grads_again, kept_again = learned(model, laid_out)
        assert torch.equal(logps_again, logps)
        assert (grads_again - grads).norm() <= 1e-6 * grads.norm()
        assert kept_again < 0.6 * kept


@pytest.mark.parametrize("kind", sorted(CANNOT))
def test_a_model_that_cannot_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"learner\.gradient_checkpointing=true: \w+ \(model_type .* leave it out"):
        check_recomputable(tiny_model(kind))


def test_a_run_makes_the_same_updates(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        source = ScriptedSource()
        config = train_config(
            learner={"gradient_checkpointing": checkpointing, "minibatches": 2, "top_entropy_quantile": 0.5}
        )
        make_trainer(config, source, tmp_path, policy=tiny_policy()).run()
        found.append(source.weights)
    assert found[0].keys() == found[1].keys() == {0, 1, 2}
    for version, weights in found[0].items():
        assert torch.allclose(found[1][version], weights, atol=1e-6)


def test_it_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.GPT2LMHeadModel.supports_gradient_checkpointing", False)
    config = train_config(learner={"gradient_checkpointing": True})
    with pytest.raises(UserError, match=r"learner\.gradient_checkpointing=true: GPT2LMHeadModel"):
        check_input(config)
