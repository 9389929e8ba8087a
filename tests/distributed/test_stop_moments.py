"""SIGTERM and Ctrl-C at moments of every phase of a run: a documented status, soon, and true words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bgrpo.chaos.faults import wait_until
from bgrpo.distributed.session.guardian import TOKEN
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder

pytestmark = pytest.mark.ray
STEPS = 6
OVERRIDES = [
    "--config=quickstart",
    f"steps={STEPS}",
    "checkpoint.every=50",
    "tracking.enabled=false",
    "evaluation.samples=0",
    "evaluation.every=1",
    "evaluation.problems=20",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.actors=1",
    *(f"task.{split}.count={count}" for split, count in (("train", 200), ("validation", 20), ("test", 200))),
]
PATIENCE_S = 240.0
ENDS_S = 200.0  # far more than is promised: a busy machine proves nothing
PROMISED = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True, slots=True)
class Moment:
    """When a signal comes.

    Attributes:
        phase: what the run does then.
        reached: whether it does.
        number: the signal.
        later_s: so long after it was reached.
        staleness: how many versions old the rollouts are.
    """

    phase: str
    reached: Callable[[psutil.Process, RunFolder], bool]
    number: signal.Signals
    later_s: float = 0.0
    staleness: int = 0

    def __str__(self) -> str:
        return f"{self.number.name} {self.phase} +{self.later_s:g} s"


def _starts(process: psutil.Process, run: RunFolder) -> bool:
    return True


def _has_child(name: str) -> Callable[[psutil.Process, RunFolder], bool]:
    return lambda process, run: any(child.name() == name for child in process.children())


def _has(key: str) -> Callable[[psutil.Process, RunFolder], bool]:
    return lambda process, run: key in run.info()


def _there(name: str) -> Callable[[psutil.Process, RunFolder], bool]:
    return lambda process, run: (run.path / name).exists()


def _step(number: int) -> Callable[[psutil.Process, RunFolder], bool]:
    return lambda process, run: len(run.metrics()) >= number


INT, TERM = signal.SIGINT, signal.SIGTERM
QUICK = [Moment("in a step", _step(2), INT)]
MOMENTS = [
    *QUICK,
    Moment("while Ray starts", _has_child("gcs_server"), TERM),
    Moment("in the final evaluation", _there("policy"), INT),
    Moment("while libraries load", _starts, TERM, 1.5),
    Moment("while libraries load", _starts, INT, 3.0),
    Moment("when the folder is made", _there("config.yaml"), INT),
    Moment("when the folder is made", _there("run.json"), TERM),
    Moment("while Ray starts", _has_child("gcs_server"), INT),
    Moment("while Ray starts", _has_child("raylet"), TERM),
    Moment("while Ray starts", _has_child("raylet"), INT, 1.0),
    Moment("while actors start", _has("service"), TERM),
    Moment("while actors start", _has("service"), INT, 2.0),
    Moment("in the first evaluation", _there("evaluation-before.json"), INT),
    Moment("before the first step", _there("processes/learner-0.json"), INT),
    Moment("before the first step", _there("processes/learner-0.json"), TERM, 1.0),
    Moment("in a step", _step(1), TERM, staleness=1),
    Moment("in a step or its validation", _step(3), TERM, 0.3),
    Moment("in a step or its validation", _step(4), INT, 0.6, staleness=1),
    Moment("while the last step is saved", _step(STEPS - 1), TERM, 0.5),
    Moment("while the policy is exported", _there(f"checkpoints/step-{STEPS:08d}"), TERM),
]


def strike(moment: Moment, runs: Path, *more: str) -> str:
    """Start a run, send the signal at its moment, and check everything that is promised of its end; one line."""
    run = RunFolder(runs / "x")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    arguments = [*OVERRIDES, f"rollout.max_staleness={moment.staleness}", f"run.dir={runs}", "run.name=x", *more]
    with (
        (runs / "log").open("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.train", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as driver,
    ):
        process = psutil.Process(driver.pid)
        try:
            wait_until(
                lambda: driver.poll() is not None or moment.reached(process, run), str(moment), PATIENCE_S, poll_s=0.02
            )
            time.sleep(moment.later_s)
            tokens = {value for child in process.children(True) for value in _tokens(child)}
            sent = time.monotonic()
            os.kill(driver.pid, moment.number)
            status = driver.wait(ENDS_S)
            seconds = time.monotonic() - sent
        finally:
            driver.kill()
        log.seek(0)
        text = log.read()
    told = f"{moment}: status {status} after {seconds:.1f} s"
    assert status == PROMISED[moment.number], f"{told}\n{text}"
    assert "Traceback" not in text, text
    assert any(word in text for word in ("SIGTERM", "SIGINT", "stopped")), f"{told}: without a word\n{text}"
    if run.path.exists():
        assert run.info().get("status") == "stopped", f"{told}: {run.info()}\n{text}"
        newest = CheckpointStore(run.checkpoints).latest()
        if "saving a checkpoint" in text and "was left" not in text:
            steps = [line["step"] for line in run.metrics()]
            assert newest is not None and CheckpointStore.step_of(newest) == steps[-1], f"{told}\n{text}"
    wait_until(lambda: not [child for child in psutil.process_iter() if tokens & _tokens(child)], "Ray's end", 200)
    return told


def _tokens(process: psutil.Process) -> set[str]:
    try:
        return {value for name, value in process.environ().items() if name == TOKEN}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return set()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", QUICK, ids=str)
def test_a_signal_ends_a_run_soon_with_a_documented_status(moment: Moment, tmp_path: Path) -> None:
    strike(moment, tmp_path, "evaluation.final=false")


@pytest.mark.long
@pytest.mark.timeout(6000)
def test_at_twenty_moments_of_every_phase(tmp_path: Path) -> None:
    for i, moment in enumerate(MOMENTS):
        (tmp_path / str(i)).mkdir()
        print(strike(moment, tmp_path / str(i)), flush=True)
