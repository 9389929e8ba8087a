"""SIGKILL at random moments of a run, half of them while a checkpoint is written: the result is as without."""

from __future__ import annotations

import random
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import psutil
import pytest
import torch
from learner_worker import resuming_learner
from safetensors.torch import load_file

from bgrpo.chaos.faults import Missed, hit, wait_until
from bgrpo.chaos.run_comparison import compare_metrics
from bgrpo.learning.learner_state import policy_folder
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder

STEPS = 8
SECTIONS: dict[str, Any] = {
    "steps": STEPS,
    "checkpoint": {"every": 2, "keep": 2},
    "learner": {"num_iterations": 2, "minibatches": 2, "warmup_steps": 3, "schedule": "cosine", "max_grad_norm": 0.1},
}
MOST_ATTEMPTS = 5  # per kill


class Run:
    """A run and the attempts to bring it to its end."""

    def __init__(self, folder: Path, processes: ForkServerContext) -> None:
        folder.mkdir()
        self.folder = RunFolder(folder)
        self._processes = processes

    def attempt(self) -> ForkServerProcess:
        child = self._processes.Process(target=resuming_learner, args=(self.folder.path, SECTIONS), daemon=True)
        child.start()
        return child

    def finish(self) -> float:
        """Seconds of an attempt that nothing disturbs."""
        start, child = time.monotonic(), self.attempt()
        child.join(200)
        self.check_end(child)
        return time.monotonic() - start

    def check_end(self, child: ForkServerProcess) -> None:
        assert child.exitcode == 0, (self.folder.path / "log").read_text()[-2000:]

    def kill_attempt(self, draw: random.Random, seconds: float, while_writing: bool) -> bool:
        """False when it came to its end before it could be killed."""
        old, child = self.writing(), self.attempt()
        assert child.pid is not None
        try:
            if while_writing:
                self.stop_while_writing(child, draw, old)
            else:
                child.join(draw.uniform(0, seconds))
            hit(child.pid, SIGKILL)
        except (Missed, psutil.NoSuchProcess):
            child.join(30)
            self.check_end(child)
            return False
        child.join(30)
        if child.exitcode == 0 and not while_writing:  # it had ended, but nobody had asked yet
            return False
        assert child.exitcode == -SIGKILL
        assert not while_writing or self.writing() - old, "the checkpoint was not complete"
        return True

    def stop_while_writing(self, child: ForkServerProcess, draw: random.Random, old: set[str]) -> None:
        """Return when the attempt is stopped and has begun, but not completed, one of its first checkpoints."""
        assert child.pid is not None
        process, wanted = psutil.Process(child.pid), draw.choice([1, 1, 2, 3])
        seen: set[str] = set()

        def enough() -> bool:
            seen.update(self.writing() - old)
            return len(seen) >= wanted or child.exitcode is not None

        while True:
            wait_until(enough, "a checkpoint", 200, poll_s=0.0005)
            time.sleep(draw.uniform(0, 0.004))
            hit(child.pid, SIGSTOP)
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the stop", poll_s=0.0005)
            if self.writing() & seen:
                return
            hit(child.pid, SIGCONT)
            wanted = len(seen) + 1

    def writing(self) -> set[str]:
        """Checkpoints that are being written, or whose writing ended with a kill."""
        return {path.name for path in self.folder.checkpoints.glob(".writing-*")}

    def result(self) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]]]:
        """Final weights and the state of the optimizer."""
        newest = CheckpointStore(self.folder.checkpoints).latest()
        assert newest is not None
        state = torch.load(newest / "optimizer.pt", weights_only=True)["optimizer"]["state"]
        return load_file(policy_folder(newest) / "model.safetensors"), state


@pytest.fixture(scope="module")
def undisturbed(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, float]:
    """A run to its end, and the seconds that it took."""
    run = Run(tmp_path_factory.mktemp("runs") / "undisturbed", processes)
    return run, run.finish()


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_run_that_is_killed_ends_as_undisturbed(
    tmp_path: Path, processes: ForkServerContext, undisturbed: tuple[Run, float], kills: int
) -> None:
    (expected, seconds), draw = undisturbed, random.Random(1)
    runs, killed = [Run(tmp_path / "run0", processes)], 0
    for _ in range(MOST_ATTEMPTS * kills):
        if killed == kills:
            break
        if runs[-1].kill_attempt(draw, seconds, while_writing=killed % 2 == 1):
            killed += 1
        else:
            runs.append(Run(tmp_path / f"run{len(runs)}", processes))
    assert killed == kills
    runs[-1].finish()

    weights, optimizer = expected.result()
    assert len(expected.folder.metrics()) == STEPS
    for run in runs:
        found, again = run.result()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        assert all(torch.equal(again[i][name], value) for i in optimizer for name, value in optimizer[i].items())
        assert compare_metrics(expected.folder.metrics(), run.folder.metrics()) == []
        assert not run.writing()
