"""Loading and saving policies: round trip, and every kind of bad checkpoint refused in one clear line."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(0, 0)
IDS = torch.tensor([[2, 6, 9, 18, 1]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy") / "policy"
    save_policy(build_policy(TOKENIZER, layers=2, heads=2, width=16, context=32, seed=0), TOKENIZER, directory)
    return directory


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "broken"))


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def pickled_only(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


def no_end_token(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))


def test_building_is_a_function_of_the_seed_and_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    policies = [build_policy(TOKENIZER, 1, 2, 16, 32, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (policy.transformer.wte.weight for policy in policies)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    config = policies[0].config
    assert (config.activation_function, config.pad_token_id, config.eos_token_id) == ("gelu_pytorch_tanh", 0, 1)
    with pytest.raises(UserError, match="multiple"):
        build_policy(TOKENIZER, 1, 3, 16, 32, 0)


def test_round_trip_is_exact_and_reads_with_the_plain_loader(saved: Path, tmp_path: Path) -> None:
    model = build_policy(TOKENIZER, layers=2, heads=2, width=16, context=32, seed=0)
    expected = model.eval()(IDS).logits
    loaded = load_policy(str(saved))
    assert torch.equal(loaded.model(IDS).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(saved)(IDS).logits, expected)
    assert loaded.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert not loaded.model.training
    save_policy(model.to(torch.bfloat16), TOKENIZER, tmp_path / "half")
    half = load_policy(str(tmp_path / "half")).model
    assert half.dtype == torch.float32
    torch.testing.assert_close(half(IDS).logits, expected, atol=2e-2, rtol=2e-2)


def test_every_dropout_is_switched_off(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, attention_dropout=0.5, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    save_policy(LlamaForCausalLM(config), TOKENIZER, tmp_path / "llama")
    model = load_policy(str(tmp_path / "llama")).model
    model.train()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_config(n_embd=32), "another shape.*config.json"),
        (set_config(n_positions=64), r"another shape.*\(32, 16\) in the file, \(64, 16\)"),
        (set_config(n_layer=3), "another shape.*lacks"),
        (set_config(n_layer=1), "another shape.*beyond config.json"),
        (set_config(vocab_size=19), "another shape"),
        (set_config(model_type="t5"), "another shape"),
        (set_config(model_type="fsmt"), "fsmt"),
        (set_config(model_type="zzz", auto_map={"AutoConfig": "x.Y"}), "cannot be loaded"),
        (lambda d: os.truncate(d / "model.safetensors", 3000), "was cut short"),
        (lambda d: os.truncate(d / "model.safetensors", 0), "was cut short"),
        (lambda d: (d / "config.json").write_text("{"), "JSON"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (pickled_only, "pytorch_model.bin, which can run code"),
        (lambda d: [(d / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "tokenizer.json is"),
        (lambda d: os.truncate(d / "tokenizer.json", 100), "cannot be loaded"),
        (no_end_token, "no end token"),
    ],
)
def test_bad_checkpoint_is_refused_in_one_line(broken: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(broken)
    with pytest.raises(UserError, match=message) as caught:
        load_policy(str(broken))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_policies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such directory"):
        load_policy(str(tmp_path / "nothing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load_policy(str(tmp_path / "file"))
    monkeypatch.setattr("bgrpo.policies.source.SHIPPED_POLICY", tmp_path / "none")
    with pytest.raises(UserError, match="shipped"):
        load_policy("shipped")


def test_saving_replaces_the_old_policy_and_leaves_no_litter(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = build_policy(TOKENIZER, 1, 2, 16, 32, seed)
        save_policy(model, TOKENIZER, tmp_path / "a" / "policy", card=f"# card {seed}")
    assert torch.equal(load_policy(str(tmp_path / "a" / "policy")).model(IDS).logits, model.eval()(IDS).logits)
    assert (tmp_path / "a" / "policy" / "README.md").read_text() == "# card 1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["policy"]


def test_a_full_disk_leaves_the_old_policy_and_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=0), TOKENIZER, target)
    before = load_policy(str(target)).model(IDS).logits
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a write beyond fails, as on a full disk
    try:
        with pytest.raises(UserError, match="cannot be written"):
            save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=1), TOKENIZER, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert torch.equal(load_policy(str(target)).model(IDS).logits, before)


def test_a_failed_rename_puts_the_old_policy_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "policy"
    save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=0), TOKENIZER, target)

    def fail(self: Path, new: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=1), TOKENIZER, target)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    load_policy(str(target))


def test_a_folder_that_is_not_a_policy_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "thesis", tmp_path / "file"):
        with pytest.raises(UserError, match="is not a policy"):
            save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=0), TOKENIZER, target)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_unwritable_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_policy(build_policy(TOKENIZER, 1, 2, 16, 32, seed=0), TOKENIZER, tmp_path / "file" / "policy")
