"""The optimizers, each against its library's used by hand, and exact resume with each and with a moving reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import ScriptedSource, flat_weights, make_trainer, tiny_policy, train_config
from torch.optim import SGD, AdamW, Muon, Optimizer
from transformers import Adafactor, PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.learning.learner_state import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.preparation import check_input

RATE, DECAY = 0.01, 0.3


def by_hand(name: str, model: PreTrainedModel) -> list[Optimizer]:
    """Norms and biases, which GPT-2 calls ln_… and bias, do not decay; matrices of layers are those inside blocks."""
    named = dict(model.named_parameters())
    decaying = [weight for key, weight in named.items() if "ln_" not in key and "bias" not in key]
    others = [weight for key, weight in named.items() if "ln_" in key or "bias" in key]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        return [AdamW(groups, lr=RATE, betas=(0.9, 0.99))]
    if name == "sgd":
        return [SGD(groups, lr=RATE)]
    if name == "adafactor":
        return [Adafactor(groups, lr=RATE, scale_parameter=False, relative_step=False)]
    matrices = [weight for key, weight in named.items() if ".h." in key and key.endswith("weight") and "ln_" not in key]
    embeddings = [weight for key, weight in named.items() if "wte" in key or "wpe" in key]
    groups = [{"params": embeddings, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return [
        Muon(matrices, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        AdamW(groups, lr=RATE, betas=(0.9, 0.99)),
    ]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_each_optimizer_moves_the_weights_as_its_library_does_by_hand(tmp_path: Path, name: str) -> None:
    config = train_config(learner={"optimizer": name, "weight_decay": DECAY, "learning_rate": RATE})
    source = ScriptedSource()
    trainer = make_trainer(config, source, tmp_path)
    trainer.run()
    model = tiny_policy()
    optimizers = by_hand(name, model)
    for gradient, version in zip(trainer.gradients, (1, 2), strict=True):
        sizes = [parameter.numel() for parameter in model.parameters()]
        for parameter, part in zip(model.parameters(), gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.allclose(source.weights[version], flat_weights(model), atol=1e-6), version


RESUMED: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name, "weight_decay": 0.1} for name in ("adamw", "sgd", "adafactor", "muon")},
    **{f"bf16 {name}": {"optimizer": name, "dtype": "bf16"} for name in ("adamw", "muon")},
    **{
        f"pure bf16 {name}": {"optimizer": name, "dtype": "pure_bf16", "weight_decay": 0.1, "minibatches": 2}
        for name in ("adamw", "sgd", "adafactor", "muon")
    },
    "pure bf16, moving reference": {"dtype": "pure_bf16", "beta": 0.5, "reference": {"sync_every": 1, "mixing": 0.7}},
    "moving reference": {"beta": 0.5, "reference": {"sync_every": 1, "mixing": 0.3}},
    "reference that has yet to move": {"beta": 0.5, "reference": {"sync_every": 3, "mixing": 1.0}},
    "every loss option": {
        "loss": "sapo",
        "top_entropy_quantile": 0.5,
        "entropy_coef": 0.1,
        "mask_truncated": True,
        "beta": 0.5,
        "kl_in_reward": True,
        "reference": {"sync_every": 2},
        "rollout_correction": {"kind": "truncate", "level": "sequence"},
    },
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    learner = {"learning_rate": RATE, "warmup_steps": 3, "schedule": "cosine", "max_kl": 1e6} | options
    config = train_config(steps=4, checkpoint={"every": 2, "keep": 9}, learner=learner)
    whole, store = ScriptedSource(cut_off=0.3), CheckpointStore(tmp_path / "checkpoints", keep=9)
    make_trainer(config, whole, tmp_path, store=store).run()
    checkpoint = store.directory / "step-00000002"
    assert (checkpoint / "reference").is_dir() == ("reference" in options)
    resumed = ScriptedSource(cut_off=0.3)
    make_trainer(
        config, resumed, tmp_path, policy=load_policy(str(policy_folder(checkpoint))).model, reference=tiny_policy(),
        store=CheckpointStore(tmp_path / "again", keep=9), resume=checkpoint,
    ).run()  # fmt: skip
    assert resumed.published == [2, 3, 4]
    for version in resumed.published:
        assert torch.equal(resumed.weights[version], whole.weights[version]), f"version {version} differs"


def test_the_reference_follows_the_policy_as_told(tmp_path: Path) -> None:
    learner = {"beta": 0.5, "reference": {"sync_every": 2, "mixing": 0.25}}
    source = ScriptedSource()
    trainer = make_trainer(train_config(steps=5, learner=learner), source, tmp_path)
    trainer.run()
    expected = source.weights[0]
    for step in (2, 4):
        expected = 0.25 * source.weights[step] + 0.75 * expected
    assert torch.allclose(flat_weights(trainer.ref_model), expected, atol=1e-6)
    assert not torch.allclose(expected, source.weights[0], atol=1e-3)


def test_without_its_package_an_optimizer_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgrpo.runs.preparation.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"learner\.optimizer=adamw_8bit: bitsandbytes is not installed here: pip"):
        check_input(train_config(learner={"optimizer": "adamw_8bit"}, policy={"path": "/nowhere"}))
