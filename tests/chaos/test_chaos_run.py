"""A whole run with faults from a schedule, as ``bgrpo chaos`` makes it: the result is that of the undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, build_config
from bgrpo.distributed.train.run import run_training
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]
STEPS, EVERY = 150, 5
KINDS = (
    "kill-rollout",
    "stop-rollout",
    "kill-verifier",
    "kill-check",
    "kill-learner",
    "kill-service",
    "kill-driver",
    "terminate-driver",
)


def config(folder: Path) -> TrainConfig:
    """Two learners, two rollout actors, a random one-layer policy, a user's reward."""
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder / "policy")
    source = {"options": {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}, "count": 12}
    tree: dict = {
        "steps": STEPS,
        "policy": {"path": str(folder / "policy")},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {"group_size": 4, "prompts_per_step": 4, "prompts_per_request": 2, "max_new_tokens": 6},
        "reward": {"function": "reward_functions:length"},
        "learner": {"workers": 2, "threads": 1, "learning_rate": 1e-3},
        "evaluation": {"final": False},
        "checkpoint": {"every": EVERY},
        "tracking": {"enabled": False},
        "run": {"dir": str(folder), "name": "calm"},
    }
    return build_config(TrainConfig, tree, "test")


def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = run_training(config(tmp_path)).folder
    kinds = ["--faults", ",".join(KINDS), "--max-faults", str(len(KINDS)), "--every", "1,2", "--seed", "3"]
    overrides = [f"run.dir={tmp_path}", "run.name=chaos", "watchdog.silence_s=10"]
    capsys.readouterr()
    status = main(["chaos", "--undisturbed", str(calm.path), *kinds, *overrides, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == [] and status == 0
    assert report == json.loads((tmp_path / "chaos" / "chaos.json").read_text())
    assert report["comparison"] == {"same_policy": True, "largest_difference": 0.0, "problems": []}
    assert report["left_behind"] == []
    summaries = {summary["kind"]: summary for summary in report["kinds"]}
    assert summaries.keys() == set(KINDS)
    assert all(summary["survived"] == summary["injected"] == 1 for summary in summaries.values()), report["faults"]
    assert summaries["kill-learner"]["redone_steps"][1] <= EVERY
    assert {trend["role"] for trend in report["memory"]} >= {"driver", "rollout service", "rollout actors", "learners"}
