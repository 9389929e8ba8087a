"""A run that learns an adapter, from Python and the command line: trained, stopped, resumed, exported, measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import bgrpo
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.cli.app import main
from bgrpo.policies.adapter import adapter_of

IDS = torch.tensor([[2, 5, 9, 40]])
STEPS = 20


@pytest.fixture(scope="module")
def arguments(policy_folder: Path) -> dict[str, Any]:
    def likes_short(prompt: str, completion: str) -> float:
        time.sleep(0.002)
        return -float(len(completion.split()))

    rows = [{"prompt": f"w{i} w{i + 1}"} for i in range(24)]
    config = {
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 5, "keep_samples": 1},
        "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 3e-2, "schedule": "constant"},
        "evaluation": {"beam_widths": [2], "samples": 0},
        "checkpoint": {"every": 5},
        "tracking.enabled": False,
    }
    rewards = {"function": likes_short, "score_truncated": True}
    return {
        "policy": policy_folder, "problems": rows, "rewards": rewards, "algorithm": "grpo", "steps": STEPS,
        "group_size": 4, "config": config, "lora": {"rank": 4, "alpha": 8.0}, "local": True, "progress": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bgrpo.Run:
    return bgrpo.train(**arguments, name="whole", runs=tmp_path_factory.mktemp("runs"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_an_adapter_learns_and_its_run_is_measured_as_any_other(run: bgrpo.Run, arguments: dict[str, Any]) -> None:
    rewards = [line["reward_mean"] for line in run.metrics()]
    assert run.status == "finished" and sum(rewards[-5:]) > sum(rewards[:5]) + 1, rewards
    assert run.metrics()[0]["kl"] == 0.0 and run.config.learner.lora.rank == 4
    assert "before" in run.table() and run.samples(STEPS)
    measured = bgrpo.evaluate(
        run.policy, [{"prompt": "w1 w2"}], arguments["rewards"], beam_widths=[2], samples=0, progress=False
    )
    assert "greedy_reward" in measured.metrics()
    assert adapter_of(run.policy.model) is None and len(run.policy.generate(["w1 w2", "w5"])) == 2


def test_stopped_and_resumed_comes_to_the_same(arguments: dict[str, Any], run: bgrpo.Run, tmp_path: Path) -> None:
    def stop(step: int, metrics: Any) -> None:
        if step == 2:
            (tmp_path / "cut" / "stop").touch()

    cut = bgrpo.train(**arguments, name="cut", runs=tmp_path, on_step=stop)
    assert cut.status == "stopped" and cut.steps < STEPS and cut.policy.generate("w1")
    resumed = bgrpo.train(resume=cut, local=True, progress=False)
    assert torch.equal(logits(resumed.policy.model), logits(run.policy.model))
    assert compare_metrics(run.metrics(), resumed.metrics()) == []
    with pytest.raises(bgrpo.UserError, match=r"cannot be resumed with learner\.lora\.rank=2"):
        bgrpo.train(resume=cut, lora=2, local=True)


def test_it_is_exported_as_adapter_and_as_one_model(
    run: bgrpo.Run, policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs", str(run.folder.parent)]
    assert main(["export", run.name, *runs, "--out", str(tmp_path / "adapter")]) == 0
    assert f"its base is {policy_folder}" in capsys.readouterr().out.replace("\n", "")
    assert main(["export", str(tmp_path / "adapter"), "--merge", "--out", str(tmp_path / "whole")]) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(whole), logits(run.policy.model))
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    before = logits(base)
    theirs = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, logits(whole), rtol=1e-4, atol=1e-4)
    assert (theirs - before).abs().max() > 0.1
    assert main(["export", run.name, *runs, "--out", str(run.folder / "policy")]) == 2
    assert main(["export", "nothing", *runs, "--out", str(tmp_path / "x")]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    assert main(["export", run.name, *runs, "--out", str(tmp_path / "full")]) == 2
    assert "exists and is not a policy" in capsys.readouterr().err


def test_a_further_run_begins_with_the_adapter_or_from_its_sum(
    run: bgrpo.Run, arguments: dict[str, Any], tmp_path: Path
) -> None:
    short = arguments | {"policy": run.folder / "policy", "steps": 1, "runs": tmp_path}
    further = bgrpo.train(**short, name="further")
    assert further.metrics()[0]["kl"] == 0.0
    base = json.loads((run.folder / "policy" / "adapter_config.json").read_text())["base_model_name_or_path"]
    settings = json.loads((further.folder / "policy" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base and settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    whole = bgrpo.train(**(short | {"lora": None}), name="whole")
    assert (whole.folder / "policy" / "model.safetensors").exists()
    assert whole.comparison is not None and further.comparison is not None and run.comparison is not None
    assert whole.comparison.before.to_dict() == further.comparison.before.to_dict()
    with pytest.raises(bgrpo.UserError, match="an adapter of rank 4 with alpha 8"):
        bgrpo.train(**(short | {"lora": 2}), name="other")
    with pytest.raises(bgrpo.UserError, match=r"learner\.lora\.target_modules: c_attn: there is no such layer"):
        bgrpo.train(**(short | {"lora": {"rank": 4, "target_modules": ["c_attn"]}}), name="other")
