"""Bad input is found before any process starts, with a line that says what would be right."""

import dataclasses
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import write_model
from tiny_t5 import write_t5
from transformers import FalconConfig, FalconForCausalLM

from bgrpo.config import TrainConfig, build_config
from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.policies.io import SHIPPED_POLICY, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.preparation import check_input, check_policy, load_problems, save_problems
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.same_input import check_same_input, policy_digest, record_input
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer
from bgrpo.tasks.splits import Splits


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 96, seed=0), tokenizer, folder)
    return folder


def config(policy: Path, /, **sections: dict) -> TrainConfig:
    options = {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}
    source = {"options": options, "count": 8}
    tree: dict = {
        "policy": {"path": str(policy)},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 16},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value
    return build_config(TrainConfig, tree, "test")


def test_no_split_shares_a_prompt(policy: Path) -> None:
    splits = check_input(config(policy)).splits
    prompts = [problem.prompt for part in (splits.train, splits.validation, splits.test) for problem in part]
    assert len(set(prompts)) == len(prompts) == 24


def test_problems_of_a_resumed_run_are_the_kept_ones(policy: Path, tmp_path: Path) -> None:
    run = config(policy, run={"dir": str(tmp_path)})
    prepared = check_input(run)
    folder = RunFolder.create(run, "test")
    save_problems(prepared.splits, folder)
    assert load_problems(folder) == prepared.splits


def test_prompts_too_long_for_the_policy_show_the_sum(policy: Path) -> None:
    with pytest.raises(UserError, match=r"problem \d+ has \d+ tokens \+ rollout\.max_new_tokens=90 = \d+, .* is 96"):
        check_input(config(policy, rollout={"prompts_per_step": 4, "max_new_tokens": 90}))


def test_tokens_that_the_policy_lacks_are_named(policy: Path, tmp_path: Path) -> None:
    data = tmp_path / "multi.txt"
    data.write_text("\n+ P 3 + * P 2 ^ a P 2 ^ a P 4 ? ^ a P 2\n* ^ a0 P 2 ^ a1 P 2 ? ^ b0 P 2 & * a0 a1\n")
    with pytest.raises(UserError, match=r"task\.train: .*multi\.txt:3: .*a0"):
        check_input(config(policy, task={"train": {"file": str(data)}}))


def test_policies_are_refused_before_anything_else(tmp_path: Path) -> None:
    """By their kind, or by what decoding cannot do exactly."""
    shutil.copytree(SHIPPED_POLICY, tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    shape = json.loads(path.read_text())
    for changes, message in (({"model_type": "gemma2"}, "another shape"), ({"n_head": 3}, "divisible")):
        path.write_text(json.dumps(shape | changes))
        with pytest.raises(UserError, match=message):
            check_policy(str(tmp_path / "policy"))
    shape = FalconConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0, eos_token_id=1
    )
    save_policy(FalconForCausalLM(shape), build_tokenizer(0, 0), tmp_path / "falcon")
    assert "the slow path" in service_of(check_policy(str(tmp_path / "falcon")).model).note
    with pytest.raises(UserError, match=r"rollout\.engine=tree: the fast tree does not know this type"):
        check_policy(str(tmp_path / "falcon"), "tree")
    with pytest.raises(UserError, match="dtype bf16 is for the fast tree"):
        check_policy(str(tmp_path / "falcon"), "auto", "bf16")


def test_fewer_problems_than_one_step_needs(policy: Path) -> None:
    with pytest.raises(UserError, match=r"task\.train has 8 problems, fewer than rollout\.prompts_per_step=64"):
        check_input(config(policy, rollout={"prompts_per_step": 64, "max_new_tokens": 16}))


def test_a_reference_of_its_own_must_read_what_the_policy_reads(policy: Path, tmp_path: Path) -> None:
    def of(path: Path | str) -> dict[str, Any]:
        return {"learner": {"reference": {"path": str(path)}}}

    assert set(check_input(config(policy)).inputs) == {"policy"}
    tokenizer = build_tokenizer(0, 0)
    for name, context, seed in (("fitting", 96, 5), ("short", 64, 0)):
        save_policy(build_policy(tokenizer, 1, 2, 16, context, seed=seed), tokenizer, tmp_path / name)
    prepared = check_input(config(policy, **of(tmp_path / "fitting")))
    assert prepared.inputs["reference"].path == str(tmp_path / "fitting")
    assert prepared.inputs["reference"].digest != policy_digest(prepared.policy)
    write_t5(tmp_path / "t5")
    for path, reason in {
        tmp_path / "short": "reads up to 64 tokens, and the policy up to 96",
        "shipped": "has another vocabulary than policy",
        tmp_path / "t5": "has another vocabulary than policy",
        tmp_path / "none": "no such directory",
    }.items():
        with pytest.raises(UserError, match=f"learner.reference.path={path}: .*{reason}"):
            check_input(config(policy, **of(path)))
    for sections, reason in (
        ({"beta": 0.0}, r"reference\.path=shipped needs a KL"),
        ({"reference": {"path": "shipped", "sync_every": 2}}, r"leave out reference\.path"),
    ):
        with pytest.raises(UserError, match=reason):
            config(policy, learner=of("shipped")["learner"] | sections)


def test_other_input_than_the_run_began_with_is_refused_by_name(policy: Path, tmp_path: Path) -> None:
    """Whatever lies outside the run's folder: policy, reference, completions allowed, reward models; and its data."""
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 96, seed=5), tokenizer, tmp_path / "reference")
    write_model(tmp_path / "scorer")
    write_model(tmp_path / "encoder", kind="encoder")
    (tmp_path / "allowed.txt").write_text("N 1\nN 2\n")
    parts = {
        "quality": {"model": str(tmp_path / "scorer")},
        "near": {"metric": "embedding_similarity", "encoder": str(tmp_path / "encoder")},
    }
    run = config(
        policy,
        run={"dir": str(tmp_path), "name": "x"},
        learner={"reference": {"path": str(tmp_path / "reference")}},
        rollout={"allowed": str(tmp_path / "allowed.txt"), "max_new_tokens": 8},
        reward={"parts": parts},
    )
    folder = RunFolder.create(run, "test")
    prepared = check_input(run)
    check_same_input(folder, prepared.inputs)  # a run of an earlier bgrpo has nothing to compare
    save_problems(prepared.splits, folder)
    record_input(folder, prepared.inputs)

    def refused(name: str, path: Path, change: Callable[[bytes], bytes]) -> None:
        content = path.read_bytes()
        path.write_bytes(change(content))
        with pytest.raises(UserError, match=rf"run x cannot be resumed: its {re.escape(name)} \(.*\) is not what"):
            check_same_input(folder, check_input(run, prepared.splits).inputs)
        path.write_bytes(content)

    def last_weight(content: bytes) -> bytes:
        return content[:-4] + struct.pack("<f", struct.unpack("<f", content[-4:])[0] + 1e-3)

    check_same_input(folder, check_input(run, prepared.splits).inputs)
    refused("policy", policy / "model.safetensors", last_weight)
    refused("reference", tmp_path / "reference" / "model.safetensors", last_weight)
    refused("rollout.allowed", tmp_path / "allowed.txt", lambda content: content + b"N 3\n")
    refused("reward.parts.quality.model", tmp_path / "scorer" / "model.safetensors", last_weight)
    refused("reward.parts.near.encoder", tmp_path / "encoder" / "model.safetensors", last_weight)
    for file in ("tokenizer.json", "config.json"):
        refused("reward.parts.quality.model", tmp_path / "scorer" / file, lambda content: content + b"\n")
    for name in ("train", "validation", "test"):
        path = folder.data / f"{name}.jsonl"
        content = path.read_bytes()
        for changed in (content.replace(b"P 1", b"P 2", 1) if b"P 1" in content else content[1:], None):
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.raises(UserError, match=rf"its data/{name}\.jsonl .* is not what it was started with"):
                check_same_input(folder, prepared.inputs)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "change", [{"messages": ({"role": "user", "content": "b"},)}, {"alternatives": ("b",)}, {"fields": {"unit": "b"}}]
)
def test_every_field_of_a_problem_is_compared(policy: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = RunFolder.create(config(policy, run={"dir": str(tmp_path), "name": "x"}), "test")
    problem = Problem(
        "P 1", "1", messages=({"role": "user", "content": "a"},), alternatives=("a",), fields={"unit": "a"}
    )
    save_problems(Splits([problem], [problem], [problem]), folder)
    record_input(folder, {})
    save_problems(Splits([problem], [problem], [dataclasses.replace(problem, **change)]), folder)
    with pytest.raises(UserError, match=r"its data/test\.jsonl"):
        check_same_input(folder, {})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reward": {"function": "reward_functions:always_fails"}}, "completion '.+': NameError: name 'np' is not def"),
        ({"reward": {"function": "reward_functions:returns_text"}}, "the reward function returned str, expected a flo"),
        ({"reward": {"function": "reward_functions.py:length"}}, "is a file; name the module: 'reward_functions:leng"),
        ({"reward": {"function": "./mine/reward_functions.py"}}, "is a file; name the module: 'reward_functions:NAME"),
        ({"reward": {"function": "no_such_module:f"}}, "No module named 'no_such_module'"),
        ({"task": {"name": "user_tasks:RaisingTask"}}, "'task:user_tasks:RaisingTask': tried on prompt .* KeyError"),
        ({"reward": {"kind": "reverse_rank", "tau": 0.001}}, "a reward is inf, expected at most .*reverse_rank"),
    ],
)
def test_a_scorer_that_fails_is_found_on_a_real_problem(policy: Path, sections: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        check_input(config(policy, **sections))
