"""What an adapter's folder holds can be anything: it is used, or refused in one line; nothing is fetched or run."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.tiny_models import tiny_model
from hostile_files import mutated
from hostile_folders import Change, becomes, network, refusal, says, sparse
from learner_cases import TOKENIZER, VOCABULARY
from safetensors.torch import load_file, save_file

from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.lora import adapted_layers, attach

__all__ = ["network"]
MUTATIONS = 250
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two names of layers, and beside it its base."""
    root = tmp_path_factory.mktemp("adapters")
    save_policy(tiny_model("llama", VOCABULARY, seed=0), TOKENIZER, root / "base")
    base = load_policy(str(root / "base"))
    learning = attach(base.base, adapted_layers(base.base, ["q_proj", "up_proj"], 2), 2, 4.0)
    save_policy(learning, base.tokenizer, root / "adapter")
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


def factors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return apply


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def itself(folder: Path) -> None:
    says(CONFIG, base_model_name_or_path=str(folder))(folder)


def moved(old: str, new: str) -> Change:
    return factors(lambda found: found.update({new: found.pop(old)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickled, "adapter_model.bin, which can run code when read"),
        (itself, "is an adapter itself"),
        (says(CONFIG, base_model_name_or_path="owner/base"), "is not here, and nothing is fetched"),
        (says(CONFIG, base_model_name_or_path="/nowhere/base"), "is not here, and nothing is fetched"),
        (says(CONFIG, base_model_name_or_path="~no-such-user/base"), "base_model_name_or_path"),
        (says(CONFIG, base_model_name_or_path="a\0b"), "base_model_name_or_path"),
        (says(CONFIG, base_model_name_or_path=None), "expected the folder of a model"),
        (says(CONFIG, base_model_name_or_path=["x"]), "expected the folder of a model"),
        (says(CONFIG, peft_type="IA3"), "only LORA can be loaded"),
        (says(CONFIG, peft_type=None), "only LORA can be loaded"),
        (says(CONFIG, task_type="SEQ_CLS"), "expected CAUSAL_LM"),
        (says(CONFIG, r=0), "expected a rank of 1 to 4096"),
        (says(CONFIG, r=3), "is no factor of rank 3"),
        (says(CONFIG, r=True), "expected a rank"),
        (says(CONFIG, r=10**12), "expected a rank"),
        (says(CONFIG, lora_alpha=float("nan")), "lora_alpha=nan"),
        (says(CONFIG, lora_alpha=0), "lora_alpha=0"),
        (says(CONFIG, lora_alpha=1e300), "lora_alpha=1e+300"),
        (says(CONFIG, use_dora=True), "'use_dora'=True, which cannot be loaded"),
        (says(CONFIG, modules_to_save=["lm_head"]), "'modules_to_save'="),
        (says(CONFIG, alpha_pattern={"(a+)+b": 2}), "'alpha_pattern'="),
        (says(CONFIG, rank_pattern={"q_proj": 9}), "'rank_pattern'="),
        (says(CONFIG, bias="all"), "'bias'='all'"),
        (says(CONFIG, init_lora_weights="pissa"), "'init_lora_weights'='pissa'"),
        (says(CONFIG, layer_replication=[[0, 4]]), "'layer_replication'="),
        (says(CONFIG, auto_map={"AutoModel": "x--y"}), "'auto_map'="),
        (becomes(CONFIG, sparse(1 << 30)), "bytes, expected at most"),
        (becomes(CONFIG, os.mkfifo), "pipe, socket or device"),
        (becomes(CONFIG, lambda path: path.write_text("[1]")), "expected an object"),
        (becomes(CONFIG, lambda path: path.write_text("[" * 10**5)), "is not JSON"),
        (becomes(WEIGHTS, lambda path: path.write_bytes(b"\xff" * 16)), "first bytes are damaged"),
        (becomes(WEIGHTS, os.mkfifo), "pipe, socket or device"),
        (becomes(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "pipe, socket or device"),
        (becomes(WEIGHTS, lambda path: save_file({}, path)), "holds no weights"),
        (factors(lambda found: found[f"{Q}.lora_A.weight"].fill_(float("inf"))), "is not finite"),
        (factors(lambda found: found.pop(f"{Q}.lora_A.weight")), "lora_A.weight is missing"),
        (factors(lambda found: found.update({f"{Q}.lora_B.weight": torch.ones(24, 3)})), "is no factor of rank 2"),
        (factors(lambda found: found.update({f"{Q}.lora_B.weight": torch.ones(25, 2)})), "of another model"),
        (factors(lambda found: found.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})), "is no factor"),
        (factors(lambda found: found.update({f"{Q}.lora_magnitude_vector": torch.ones(24)})), "is no factor"),
        (moved(f"{Q}.lora_A.weight", f"{Q}.lora_A.other.weight"), "is no factor of a linear layer"),
        (moved(f"{Q}.lora_A.weight", "q_proj.lora_A.weight"), "is no factor of rank 2"),
        (becomes("tokenizer.json", os.mkfifo), "pipe, socket or device"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, change: Change, message: str, network: list[str]) -> None:
    change(folder)
    assert message in refusal(folder, load_policy)


def test_a_layer_that_the_base_lacks_is_named(folder: Path) -> None:
    def other(found: dict[str, torch.Tensor]) -> None:
        for letter in "AB":
            found[f"base_model.model.model.layers.9.q_proj.lora_{letter}.weight"] = found.pop(
                f"{Q}.lora_{letter}.weight"
            )

    factors(other)(folder)
    assert "LlamaForCausalLM has no linear layer model.layers.9.q_proj" in refusal(folder, load_policy)


def test_a_pattern_that_never_ends_is_not_read(folder: Path) -> None:
    says(CONFIG, target_modules="(a|a)*" * 50 + "b", layers_pattern="(x+x+)+y")(folder)
    assert load_policy(str(folder)).adapter is not None


def test_any_mutation_is_used_or_refused_in_one_line(made: Path, tmp_path: Path, network: list[str]) -> None:
    contents = {file: (made / "adapter" / file).read_bytes() for file in (CONFIG, WEIGHTS)}
    config = json.loads(contents[CONFIG])
    assert Path(config["base_model_name_or_path"]).is_dir()
    used = 0
    for seed in range(MUTATIONS):
        draw = random.Random(seed)
        chosen = draw.choice(sorted(contents))
        broken = tmp_path / "broken"
        broken.mkdir()
        for name, content in contents.items():
            (broken / name).write_bytes(mutated(content, draw) if name == chosen else content)
        try:
            policy = load_policy(str(broken))
            save_policy(policy.model, policy.tokenizer, tmp_path / "saved", adapter=policy.adapter)
            used += 1
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 700, (seed, chosen, error)
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {chosen}") from error
        shutil.rmtree(broken)
    assert MUTATIONS / 50 < used < 4 * MUTATIONS / 5, f"{used} used: mutations that do nothing, or only the same"
