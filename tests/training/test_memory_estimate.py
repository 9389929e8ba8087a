"""The memory told before a run, against real tensors: parameters, gradients, optimizers' states, what a pass keeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.tiny_models import FAMILIES, tiny_model
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bgrpo.cli.app import main
from bgrpo.learning.starting_point import attached
from bgrpo.training import run_estimate
from bgrpo.training.memory_estimate import (
    BatchSize,
    ModelSize,
    learner_memory,
    optimizer_bytes,
    published_bytes,
    reference_bytes,
)
from bgrpo.training.traced_activations import LiveBytes, activation_bytes


def bytes_of(tensors: Any) -> int:
    return sum({one.untyped_storage().data_ptr(): one.numel() * one.element_size() for one in tensors}.values())


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_policy_without_weights_is_counted_as_one_with_them(kind: str) -> None:
    model = tiny_model(kind, 11, tie_word_embeddings=kind != "phi")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    size = ModelSize.of(empty)
    assert size == ModelSize.of(model)
    assert 4 * size.weights == bytes_of(model.parameters())
    assert size.head == model.get_output_embeddings().weight.numel() and size.tied == (kind != "phi")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "pure_bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "muon"])
def test_weights_state_and_reference_are_as_large_as_told(tmp_path: Path, optimizer: str, dtype: str) -> None:
    config = train_config(steps=1, learner={"optimizer": optimizer, "dtype": dtype, "beta": 0.1})
    trainer = make_trainer(config, ScriptedSource(), tmp_path, policy=tiny_policy())
    trainer.run()
    states = trainer.optimizer.state_dict()["state"].values()
    kept = [value for state in states for key, value in state.items() if key != "step"]
    state = sum(one.numel() * one.element_size() for one in kept if isinstance(one, Tensor) and one.ndim)
    size, batch = ModelSize.of(trainer._policy), BatchSize.of(config, 9, padded=False)
    told = learner_memory(config, size, batch, activations=0, libraries=0).parts
    assert told["weights"] == told["gradients"] == bytes_of(trainer._policy.parameters())
    assert told["optimizer"] == optimizer_bytes(config.learner, size) == state
    assert told["reference"] == reference_bytes(config.learner, size) == bytes_of(trainer.ref_model.parameters())
    assert reference_bytes(train_config(learner={"beta": 0.0}).learner, size) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_an_adapter_and_its_state_are_as_large_as_told(tmp_path: Path, optimizer: str) -> None:
    config = train_config(steps=1, learner={"optimizer": optimizer, "beta": 0.1, "lora": {"rank": 3}})
    base = tiny_policy()
    size, batch = ModelSize.of(base, config.learner.lora), BatchSize.of(config, 9, padded=False)
    told = learner_memory(config, size, batch, activations=0, libraries=0).parts
    trainer = make_trainer(config, ScriptedSource(), tmp_path, policy=attached(config, base))
    trainer.run()
    states = trainer.optimizer.state_dict()["state"].values()
    kept = [value for state in states for key, value in state.items() if key != "step"]
    learned = [one for one in trainer._policy.parameters() if one.requires_grad]
    assert told["optimizer"] == sum(one.numel() * one.element_size() for one in kept if one.ndim)
    assert told["gradients"] == bytes_of(learned) == 4 * size.trained and told["reference"] == 0
    assert told["weights"] == bytes_of(trainer._policy.parameters()) == 4 * (size.weights + size.trained)
    changed = {path for path, _ in base.named_modules() if path.rsplit(".", 1)[-1] in ("c_attn", "c_proj", "c_fc")}
    assert 4 * size.adapted == bytes_of(base.get_submodule(path).weight for path in changed)
    assert published_bytes(config, size) == 2 * bytes_of(learned)


def test_learners_of_shares_hold_their_share_and_what_they_gather() -> None:
    size = ModelSize.of(tiny_policy())
    learner = {"workers": 4, "beta": 0.1, "optimizer": "adamw"}
    whole, shares = (
        learner_memory(config, size, BatchSize.of(config, 9, padded=False), 0, 0).parts
        for config in (train_config(learner=learner), train_config(learner=learner | {"sharding": "full"}))
    )
    for name in ("weights", "reference", "gradients", "optimizer"):
        assert shares[name] == whole[name] // 4 > 0
    layer = bytes_of(tiny_policy().transformer.h[0].parameters())
    outer = bytes_of(tiny_policy().get_output_embeddings().parameters())
    assert whole["gathered"] == 0 and 2 * outer + 3 * layer <= shares["gathered"] < 2 * outer + 4 * layer


def test_live_bytes_are_those_that_are_there() -> None:
    with LiveBytes(torch.nn.Linear(3, 5)) as live:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1  # a view of the first, and one more
        del first
        third = torch.zeros(500)
        shaped = torch.zeros(5, 3)  # as a weight is
    assert live.peak == 4 * 2000 and second.numel() + third.numel() + shaped.numel() == 1515


def kept_by_a_pass(config: LlamaConfig, learner: Any, tokens: int) -> int:
    """Bytes that autograd saves for one row of tokens, weights left out: torch's own hooks count them."""
    model = AutoModelForCausalLM.from_config(config).train()
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if learner.gradient_checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.arange(tokens)[None] % 61
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_pass_holds_is_found_with_two_layers(checkpointing: bool) -> None:
    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=160, num_hidden_layers=9, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    learner = train_config(learner={"gradient_checkpointing": checkpointing}).learner
    kept = kept_by_a_pass(config, learner, 512)
    told = activation_bytes(config, learner, 512, "auto")
    one_layer = kept_by_a_pass(config, train_config().learner, 512) / 9
    assert kept <= told < kept + 3 * one_layer


def test_a_pass_with_adapters_holds_about_as_much_as_one_without() -> None:
    """A needs what a layer reads as its weights do; the products with B come on top."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=160, num_hidden_layers=9, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    whole = activation_bytes(config, train_config().learner, 512, "auto")
    for target in ("all-linear", ["model.layers.8.mlp.up_proj"]):
        learner = train_config(learner={"lora": {"rank": 4, "target_modules": target}}).learner
        assert 0.6 * whole < activation_bytes(config, learner, 512, "auto") < 1.3 * whole


def test_a_run_that_does_not_fit_is_told_what_would_make_it_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_estimate, "libraries_bytes", lambda: 10**8)
    memory = type("Memory", (), {"available": 10**12})
    monkeypatch.setattr(run_estimate.psutil, "virtual_memory", lambda: memory)
    command = ["doctor", "--config", "quickstart", "--no-probe", "--json", "learner.workers=2"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == {"ray": True, "local": True} and not found["remedies"]
    assert found["policy"]["weights"] == 625_920 and found["processes"][0]["count"] == 2
    whole, memory.available = found["bytes"]["ray"], found["bytes"]["ray"] - 2 * 10**8
    assert main(command) == 0
    tight = json.loads(capsys.readouterr().out)
    assert tight["fits"] == {"ray": False, "local": True} and tight["remedies"]
    peaks = [whole, *(remedy["ray"] for remedy in tight["remedies"])]
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] <= memory.available < peaks[-2]
    memory.available = 10**6
    assert main([*command[:4], "learner.workers=2"]) == 1
    assert "does not fit bgrpo train --local" in " ".join(capsys.readouterr().out.split())
