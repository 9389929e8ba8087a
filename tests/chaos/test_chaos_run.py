"""A whole run with faults from a schedule, as ``bgrpo chaos`` makes it: the result is that of the undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import yaml

from bgrpo.chaos import disturbed_run
from bgrpo.chaos.schedule import DEFAULT_KINDS
from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer
from bgrpo.training import driver
from bgrpo.training.in_process import InProcess

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]
EVERY = 5
QUICK_KINDS = "stop-rollout,kill-driver"  # test_run.py has the others, but kill-check, which is in the long test


def write_config(folder: Path, steps: int, learners: int, actors: int) -> Path:
    """A random one-layer policy, a user's reward."""
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder / "policy")
    source = {"options": {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}, "count": 12}
    tree: dict = {
        "steps": steps,
        "policy": {"path": str(folder / "policy")},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {"actors": actors, "group_size": 4, "prompts_per_step": 4}
        | {"prompts_per_request": 2, "max_new_tokens": 6},
        "reward": {"function": "reward_functions:length"},
        "learner": {"workers": learners, "threads": 1, "learning_rate": 1e-3},
        "evaluation": {"final": False},
        "checkpoint": {"every": EVERY},
        "tracking": {"enabled": False},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fault is left out because learners or a driver start slowly on a busy machine."""
    monkeypatch.setattr(disturbed_run, "PATIENCE_S", 600.0)


def disturb(capsys: pytest.CaptureFixture[str], folder: Path, kinds: str, *arguments: str) -> dict[str, Any]:
    """The report of a chaos run with one fault of each kind, none of which may have changed anything."""
    schedule = ["--faults", kinds, "--max-faults", str(kinds.count(",") + 1), "--every", "1,2", "--seed", "3"]
    overrides = [f"run.dir={folder}", "run.name=chaos", "watchdog.silence_s=10"]
    capsys.readouterr()
    status = main(["chaos", *schedule, *arguments, *overrides, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["problems"] == [] and status == 0
    assert report == json.loads((folder / "chaos" / "chaos.json").read_text())
    assert report["comparison"] == {"same_policy": True, "largest_difference": 0.0, "problems": []}
    assert report["left_behind"] == []
    summaries = {summary["kind"]: summary for summary in report["kinds"]}
    assert summaries.keys() == set(kinds.split(","))
    assert all(summary["survived"] == summary["injected"] == 1 for summary in summaries.values()), report["faults"]
    assert {trend["role"] for trend in report["memory"]} >= {"driver", "rollout service", "rollout actors", "learners"}
    return report


def test_a_disturbed_run_ends_as_a_given_undisturbed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The undisturbed one is made in this process."""
    overrides = [f"run.dir={tmp_path}", "run.name=calm"]
    file = write_config(tmp_path, 80, learners=1, actors=1)
    calm = driver.run_training(InProcess(), load_config(TrainConfig, str(file), overrides)).folder
    report = disturb(capsys, tmp_path, QUICK_KINDS, "--undisturbed", str(calm.path))
    ended = {record["fault"]["kind"]: record["driver_status"] for record in report["faults"]}
    assert ended == {"stop-rollout": None, "kill-driver": -SIGKILL}


@pytest.mark.long
def test_a_run_with_all_faults_ends_as_the_undisturbed_one_that_the_command_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds, file = ",".join(DEFAULT_KINDS), write_config(tmp_path, 150, learners=2, actors=2)
    report = disturb(capsys, tmp_path, kinds, "--config", str(file))
    (redone,) = (summary["redone_steps"] for summary in report["kinds"] if summary["kind"] == "kill-learner")
    assert redone[1] <= EVERY
    assert report["undisturbed_seconds"] > 0
