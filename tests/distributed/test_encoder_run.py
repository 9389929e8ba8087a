"""A T5 that fuses passages, on Ray: what it learns is what it learns in one process, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_t5 import WORDS, write_t5

from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.config import TrainConfig, build_config
from bgrpo.distributed.train.training_run import run_training
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.io import load_policy
from bgrpo.training import driver
from bgrpo.training.in_process import InProcess

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]


def config(folder: Path, data: Path, name: str) -> TrainConfig:
    tree = {
        "steps": 2,
        "policy": {"path": str(folder)},
        "task": {"name": "text", "options": {"passages": "stories"}, "train": {"file": str(data)}},
        "rollout": {"actors": 1, "group_size": 4, "prompts_per_step": 4, "prompts_per_request": 2, "max_new_tokens": 5},
        "reward": {"parts": {"variety": {"metric": "distinct_1", "score_truncated": True}}},
        "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-2},
        "evaluation": {"beam_widths": [2], "samples": 0, "every": 0},
        "run": {"dir": str(data.parent / "runs"), "name": name},
        "tracking": {"enabled": False},
    }
    return build_config(TrainConfig, tree, "test")


def test_ray_and_one_process_come_to_the_same(tmp_path: Path) -> None:
    folder, data = tmp_path / "policy", tmp_path / "data.jsonl"
    write_t5(folder)
    rows = [
        {"prompt": f"{WORDS[i]} {WORDS[i + 1]}", "answer": WORDS[i], "stories": [WORDS[i + 2], "w3 w4"][: 1 + i % 2]}
        for i in range(20)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = driver.run_training(InProcess(), config(folder, data, "local"))
    on_ray = run_training(config(folder, data, "ray"))
    weights = [flatten_parameters(load_policy(str(run.folder.policy)).model) for run in (local, on_ray)]
    assert (weights[0] == weights[1]).all() and (weights[0] != flatten_parameters(load_policy(str(folder)).model)).any()
    assert compare_metrics(local.folder.metrics(), on_ray.folder.metrics()) == []
    evaluations = [json.loads(run.folder.evaluation_path.read_text()) for run in (local, on_ray)]
    assert evaluations[0] == evaluations[1]
