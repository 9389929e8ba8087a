"""SIGKILL at twenty random moments of a run, many of them while a checkpoint is written: the result is as without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bgrpo.chaos.comparison import compare_metrics
from bgrpo.learning.checkpoint import policy_folder
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.folder import RunFolder

KILLS = 20
WORKER = Path(__file__).parents[1] / "kill_worker.py"


def final(run: RunFolder) -> Path:
    newest = CheckpointStore(run.checkpoints).latest()
    assert newest is not None
    return newest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_a_run_ends_as_undisturbed(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), str(tmp_path), "1", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == KILLS
    assert told["inside"] >= 4, "too few of the kills came while a checkpoint was being written"

    undisturbed = RunFolder(tmp_path / "undisturbed")
    expected = load_file(policy_folder(final(undisturbed)) / "model.safetensors")
    optimizer = torch.load(final(undisturbed) / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert len(undisturbed.metrics()) == 8
    for run in map(RunFolder, map(Path, told["finished"])):
        found = load_file(policy_folder(final(run)) / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weights) for name, weights in expected.items())
        again = torch.load(final(run) / "optimizer.pt", weights_only=True)["optimizer"]["state"]
        assert all(
            torch.equal(again[i][name], value) for i, state in optimizer.items() for name, value in state.items()
        )
        assert compare_metrics(undisturbed.metrics(), run.metrics()) == []
        assert not list(run.checkpoints.glob(".writing-*"))
