"""A disk that really fills while a checkpoint is written: one clear error, the old checkpoint, and the same result."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

from bgrpo.chaos.faults import fill_disk
from bgrpo.errors import UserError
from bgrpo.learning.learner_state import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore

STEPS = 6
SECTIONS: dict[str, Any] = {"steps": STEPS, "checkpoint": {"every": 2, "keep": 9}, "learner": {"num_iterations": 2}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root may mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def train(store: CheckpointStore, folder: Path) -> ScriptedSource:
    latest, source = store.latest(), ScriptedSource()
    policy = tiny_policy() if latest is None else load_policy(str(policy_folder(latest))).model
    reference = None if latest is None else tiny_policy()
    config = train_config(**SECTIONS)
    make_trainer(config, source, folder, policy=policy, reference=reference, store=store, resume=latest).run()
    return source


def test_a_disk_that_fills_costs_the_new_checkpoint_only(small_disk: Path, tmp_path: Path) -> None:
    expected = train(CheckpointStore(tmp_path / "whole", keep=9), tmp_path / "a").weights[STEPS]
    size = sum(path.stat().st_size for path in (tmp_path / "whole" / "step-00000002").rglob("*"))

    store = CheckpointStore(small_disk / "checkpoints", keep=9)
    ballast = fill_disk(small_disk, leave=int(1.6 * size) + 64 * 1024)  # room for one checkpoint and a half
    with pytest.raises(UserError, match=r"step-00000004.*No space left on device.*older checkpoints are untouched"):
        train(store, tmp_path / "b")
    latest = store.latest()
    assert latest is not None and store.step_of(latest) == 2
    assert [path.name for path in store.directory.iterdir()] == [latest.name]

    ballast.unlink()
    source = train(store, tmp_path / "b")
    assert source.asked[0][0] == 2, "goes on after the checkpoint"
    assert torch.equal(source.weights[STEPS], expected)
