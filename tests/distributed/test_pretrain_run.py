"""Supervised training as a Ray job: a killed worker costs time, not the result; the stop file and a resume work."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest

from bgrpo.chaos.faults import at_steps, find, hit
from bgrpo.config import PretrainConfig, build_config
from bgrpo.distributed.train.pretraining_run import run_pretrain
from bgrpo.errors import UserError
from bgrpo.policies.io import flatten_parameters, load_policy
from bgrpo.pretraining.pretrain import make_data, train
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder
from bgrpo.training.run_attempt import STOP_FILE
from ray_jobs.pretrain import main

TREE: dict[str, Any] = {
    "layers": 1, "heads": 2, "width": 16, "context": 24, "max_new_tokens": 8, "steps": 800, "batch_size": 32,
    "warmup_steps": 4, "validate_every": 100, "validation_problems": 10, "bf16": False, "threads": 1, "workers": 1,
    "task": {
        "name": "pretrain_toy_task:ReverseTask",
        "train": {"count": 200, "seed": 1},
        "validation": {"count": 20, "seed": 2},
        "test": {"count": 20, "seed": 3},
    },
}  # fmt: skip


def config(runs: Path, **changes: Any) -> PretrainConfig:
    return build_config(PretrainConfig, TREE | {"run": {"dir": str(runs), "name": "toy"}} | changes, "test")


def kill_worker() -> None:
    for worker in find("learner"):
        hit(worker, SIGKILL)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_and_a_stop_change_nothing_in_the_result(tmp_path: Path) -> None:
    settings = config(tmp_path / "runs")
    folder = tmp_path / "runs" / "toy"
    with at_steps(folder / "metrics.jsonl", {240: kill_worker, 500: (folder / STOP_FILE).touch}) as begun:
        stopped = run_pretrain(settings, command="bgrpo pretrain --config toy")
    assert begun == [240, 500]
    assert stopped.policy is None
    assert RunFolder(folder).info()["status"] == "stopped"

    result = run_pretrain(settings, resume=True)
    assert result.policy == folder / "policy"
    assert RunFolder(folder).info()["status"] == "finished"
    steps = [record["step"] for record in RunFolder(folder).metrics()]
    assert steps == list(range(20, 801, 20))
    assert "bgrpo pretrain --config toy" in (result.policy / "README.md").read_text()
    assert (tmp_path / "runs" / "mlflow.db").is_file()

    whole = tmp_path / "whole"
    make_data(settings).save(whole)
    train(settings, whole, lambda metrics: None)
    one, other = (
        flatten_parameters(load_policy(str(CheckpointStore(path / "checkpoints").latest())).model)
        for path in (whole, folder)
    )
    assert np.array_equal(one, other)


def test_the_job_turns_a_users_error_into_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--config", "nowhere"], ["stepz=3"], ["--resume", str(tmp_path)]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_bad_input_fails_before_ray_and_before_a_run_folder_exists(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    for changes, message in (({"out": str(tmp_path / "thesis")}, "not a policy"), ({"batch_size": 512}, "do not fill")):
        with pytest.raises(UserError, match=message):
            run_pretrain(config(tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()
