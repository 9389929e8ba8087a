"""Nodes that training runs lose: a learner's, a rollout actor's, the head. The policy is that of a calm run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_losses import ENVIRONMENT, EVERY, STEPS

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all runs, their drivers' logs, and what the program saw."""
    folder = tmp_path_factory.mktemp("losses")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= ENVIRONMENT
    command = [sys.executable, Path(__file__).with_name("run_losses.py"), folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    logs = "\n".join(f"{path.name}:\n{path.read_text('utf-8')[-2000:]}" for path in folder.glob("*.log"))
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{logs}"
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf-8"))


def policy(folder: Path, run: str) -> bytes:
    """Of a finished run, as it lies in its file."""
    return (folder / run / "policy" / "model.safetensors").read_bytes()


def test_a_run_whose_learner_lost_its_node_goes_on_by_itself_on_another(folder: Path, report: dict[str, Any]) -> None:
    seen = report["learner node"]
    assert seen["status"] == 0
    assert len(set(seen["nodes"])) == 2, "the learner came back on the node that was added"
    assert EVERY < seen["step"] < STEPS
    assert EVERY <= seen["resumed"] <= seen["step"]
    assert seen["step"] - seen["resumed"] <= EVERY
    assert policy(folder, "learner-node") == policy(folder, "calm")


def test_chaos_takes_a_rollout_node_away(folder: Path, report: dict[str, Any]) -> None:
    chaos = json.loads((folder / "chaos" / "chaos.json").read_text("utf-8"))
    assert chaos["problems"] == [] and report["chaos"]["status"] == 0
    assert chaos["comparison"] == {"same_policy": True, "largest_difference": 0.0, "problems": []}
    (fault,) = chaos["faults"]
    assert fault["skipped"] is None and fault["victim"].startswith("node ")
    assert fault["noticed_s"] is not None and fault["step_s"] is not None
    assert report["chaos"]["nodes lost"] == 1
    assert policy(folder, "chaos/disturbed") == policy(folder, "calm")


def test_a_run_that_lost_the_head_says_so_ends_and_is_resumed_on_another(folder: Path, report: dict[str, Any]) -> None:
    seen = report["head"]
    assert EVERY < seen["step"] < STEPS
    assert seen["status"] != 0 and seen["end s"] < 60 and not seen["finished"]
    said = (folder / "head.log").read_text("utf-8")
    assert f"the head of the Ray cluster, {seen['address']}, does not answer" in said
    assert "go on with --resume" in said
    assert "Traceback" not in said
    assert report["resumed"]["status"] == 0
    assert report["resumed"]["from"] >= EVERY
    assert policy(folder, "head") == policy(folder, "calm")
