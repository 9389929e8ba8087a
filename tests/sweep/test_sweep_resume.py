"""A driver killed in the middle of a sweep: what had finished is not done again, the rest goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import tiny_sweep

from bgrpo.config import dump_config
from bgrpo.runs.checkpoints import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
STEPS = 8
LIMIT_S = 240.0
REPOSITORY = Path(__file__).resolve().parents[2]


class Driver:
    """``bgrpo sweep`` as a user starts it, in a process and a local Ray of its own."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "bgrpo.cli.app", "sweep", *arguments]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output, env=os.environ)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"waited too long for {what}:\n{self.log.read_text()}"
            time.sleep(0.05)


def states(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "trials.json"
    return {trial["id"]: trial for trial in json.loads(path.read_text())["trials"]} if path.exists() else {}


def steps_saved(folder: Path, trial: str) -> int:
    newest = CheckpointStore(folder / "trials" / trial / "checkpoints").latest()
    return 0 if newest is None else CheckpointStore.step_of(newest)


def test_killed_interrupted_and_resumed(tmp_path: Path) -> None:
    budget = {"kind": "steps", "amount": STEPS}
    sweep = tiny_sweep(tmp_path, "broken", max_concurrent=1, budget=budget, tracking={"enabled": False})
    dump_config(sweep, tmp_path / "sweep.yaml")
    folder, first, second = tmp_path / "broken", "bgrpo-confirm-seed1000", "grpo-confirm-seed1000"

    driver = Driver(tmp_path / "log1", "--config", str(tmp_path / "sweep.yaml"))
    driver.wait_for(lambda: steps_saved(folder, first) >= 2, "two checkpoints of the first trial")
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(LIMIT_S) == 130, driver.log.read_text()
    interrupted = states(folder)[first]
    assert (interrupted["state"], interrupted["attempts"]) == ("pending", 1)
    reached = steps_saved(folder, first)
    assert 2 <= reached < STEPS and f"bgrpo sweep --resume {folder}" in driver.log.read_text()

    driver = Driver(tmp_path / "log2", "--resume", "broken", f"run.dir={tmp_path}")
    driver.wait_for(lambda: steps_saved(folder, second) >= 2, "two checkpoints of the second trial")
    finished = states(folder)[first]
    assert (finished["state"], finished["attempts"]) == ("finished", 2)
    driver.process.kill()
    driver.process.wait(LIMIT_S)
    assert states(folder)[second]["state"] == "running"
    kept = steps_saved(folder, second)

    driver = Driver(tmp_path / "log3", "--resume", "broken", f"run.dir={tmp_path}", "--json")
    assert driver.process.wait(LIMIT_S) == 0, driver.log.read_text()
    after = states(folder)
    assert after[first] == finished
    assert (after[second]["state"], after[second]["attempts"]) == ("finished", 2)
    for trial in (first, second):
        lines = (folder / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    went_on = [
        json.loads(line)["time"] for line in (folder / "trials" / second / "metrics.jsonl").read_text().splitlines()
    ]
    assert went_on[kept - 1] < after[second]["since"] < went_on[kept]
    result = json.loads(driver.log.read_text().splitlines()[-1])
    assert result["status"] == "finished" and Path(result["report"]).is_file()

    again = Driver(tmp_path / "log4", "--resume", str(folder))
    assert again.process.wait(LIMIT_S) == 0, again.log.read_text()
    assert states(folder) == after
