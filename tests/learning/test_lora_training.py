"""Training of an adapter: no KL at the first step, resume bit for bit, what is kept and published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import TOKENIZER, ScriptedSource, flat_weights, make_trainer, tiny_policy, train_config
from safetensors import safe_open

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.learning.starting_point import attached, starting_point
from bgrpo.policies.adapter import Adapter, adapter_of
from bgrpo.policies.io import LoadedPolicy, load_policy, save_policy
from bgrpo.runs.checkpoints import CheckpointStore

LORA: dict[str, Any] = {"rank": 2, "alpha": 6.0}
SECTIONS: dict[str, Any] = {
    "steps": 5,
    "checkpoint": {"every": 2, "keep": 9},
    "learner": {"lora": LORA, "num_iterations": 2, "minibatches": 2, "warmup_steps": 3, "schedule": "cosine"},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a starting policy."""
    folder = tmp_path_factory.mktemp("start") / "policy"
    save_policy(tiny_policy(), TOKENIZER, folder)
    return str(folder)


def run(
    config: TrainConfig, start: LoadedPolicy, folder: Path, checkpoint: Path | None = None, keep: str = "checkpoints"
) -> tuple[ScriptedSource, Any, list[dict[str, Any]]]:
    policy, reference = starting_point(config, start, checkpoint)
    source, store, steps = ScriptedSource(), CheckpointStore(folder / keep, keep=9), list[dict[str, Any]]()
    trainer = make_trainer(
        config, source, folder, policy=policy.model, reference=reference, store=store, resume=checkpoint,
        on_step=steps.append,
    )  # fmt: skip
    trainer.run()
    return source, trainer, steps


@pytest.mark.parametrize("moving", [False, True], ids=["fixed reference", "moving reference"])
def test_interrupted_equals_uninterrupted_bit_for_bit(start: str, tmp_path: Path, moving: bool) -> None:
    reference = {"sync_every": 2, "mixing": 1.0} if moving else {}
    config = train_config(**(SECTIONS | {"learner": SECTIONS["learner"] | {"reference": reference}}))
    loaded = load_policy(start)
    before = flat_weights(loaded.model)
    whole, trainer, steps = run(config, loaded, tmp_path)
    assert steps[0]["kl"] > 0, "two passes over one batch: the second sees a policy that has moved"
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    resumed, again, later = run(config, load_policy(start), tmp_path, checkpoint, "again")
    assert resumed.published == [2, 3, 4, 5]
    for version in resumed.published:
        assert torch.equal(resumed.weights[version], whole.weights[version]), f"version {version} differs"
    assert all(torch.equal(a, b) for a, b in zip(again.gradients, trainer.gradients[8:], strict=True))
    assert [step["kl"] for step in later] == [step["kl"] for step in steps[2:]]
    assert torch.equal(flat_weights(loaded.model), before), "the base does not move"
    moved = adapter_of(trainer.ref_model)
    assert (moved is not None) == moving and (checkpoint / "reference").is_dir() == moving


def test_a_checkpoint_and_a_publication_hold_the_adapter_alone(start: str, tmp_path: Path) -> None:
    config = train_config(steps=1, learner={"lora": LORA, "beta": 0.1})
    source, trainer, steps = run(config, load_policy(start), tmp_path)
    numbers = adapter_of(trainer.model).numbers
    total = sum(weight.numel() for weight in tiny_policy().parameters())
    assert steps[0]["published_bytes"] == 4 * numbers < total and source.weights[1].numel() == numbers
    folder = tmp_path / "checkpoints" / "step-00000001"
    with safe_open(folder / "policy" / "adapter_model.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == numbers  # noqa: SIM118
    state = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    held = sum(value.numel() for of_one in state.values() for name, value in of_one.items() if name != "step")
    assert held == 2 * numbers and not (folder / "policy" / "model.safetensors").exists()
    assert steps[0]["kl"] == 0.0, "the adapter is off and on the same at the first step"
    assert trainer.ref_model is not trainer.model and adapter_of(trainer.ref_model) is None
    shared = {weight.data_ptr() for weight in trainer.ref_model.parameters()}
    own = [weight for weight in trainer.model.parameters() if weight.data_ptr() not in shared]
    assert sum(weight.numel() for weight in own) == numbers, "the reference is no second copy"


def test_an_adapter_is_trained_further_or_merged(start: str, tmp_path: Path) -> None:
    config = train_config(steps=1, learner={"lora": LORA, "beta": 0.1, "minibatches": 1})
    run(config, load_policy(start), tmp_path)
    folder = tmp_path / "checkpoints" / "step-00000001" / "policy"
    further = load_policy(str(folder))
    source, trainer, steps = run(config, further, tmp_path / "further")
    assert further.adapter is not None and torch.equal(source.weights[0], flat_weights(further.adapter))
    assert steps[0]["kl"] == 0.0 and adapter_of(trainer.ref_model) is not None
    assert not torch.equal(source.weights[1], source.weights[0])
    for changes, told in (({"rank": 1}, "an adapter of rank 2 with alpha 6"), ({"target_modules": ["c_fc"]}, "layers")):
        with pytest.raises(UserError, match=told):
            attached(train_config(learner={"lora": LORA | changes}), further.base, further.adapter)
    merged = train_config(steps=1, learner={"beta": 0.1})
    policy, _ = starting_point(merged, further, None)
    assert adapter_of(policy.model) is None and not torch.equal(flat_weights(policy.model), flat_weights(further.base))


@pytest.mark.parametrize("optimizer", ["adafactor", "muon", "sgd"])
def test_every_optimizer_moves_the_factors(start: str, tmp_path: Path, optimizer: str) -> None:
    config = train_config(steps=2, learner={"lora": LORA, "optimizer": optimizer, "learning_rate": 1e-2})
    source, trainer, _ = run(config, load_policy(start), tmp_path)
    first, last = source.weights[0], source.weights[2]
    assert last.isfinite().all() and not torch.equal(first, last)
    assert isinstance(adapter_of(trainer.model), Adapter)


def test_bf16_and_recomputed_layers_leave_base_and_first_kl_as_they_are(start: str, tmp_path: Path) -> None:
    gradients: list[torch.Tensor] = []
    for name, options in {"plain": {}, "again": {"gradient_checkpointing": True}, "bf16": {"dtype": "bf16"}}.items():
        loaded = load_policy(start)
        before = flat_weights(loaded.model)
        config = train_config(steps=1, learner={"lora": LORA, "beta": 0.1} | options)
        source, trainer, steps = run(config, loaded, tmp_path / name)
        assert steps[0]["kl"] == 0.0 and torch.equal(flat_weights(loaded.model), before)
        assert not torch.equal(source.weights[1], source.weights[0])
        gradients += trainer.gradients
    plain, again, rounded = gradients
    assert torch.equal(plain, again)
    assert 0 < (rounded - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "pure_bf16"}, "would change the policy"),
        ({"reference": {"dtype": "bf16"}}, "has no copy that could be rounded"),
        ({"reference": {"sync_every": 3}}, "set reference.mixing=1"),
        ({"lora": {"alpha": 2.0}}, "alpha needs a rank above 0"),
    ],
)
def test_what_cannot_be_with_an_adapter_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        train_config(learner={"lora": LORA} | options)
