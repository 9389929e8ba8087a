"""A run as a Ray job, on a cluster that ``ray start --head`` made, with the commands that a user types."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bgrpo.checkpoints import CheckpointStore
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.tokenizer import build_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
OPTIONS = "{kind: single, degrees: [[2, 2]], coefficients: 3}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A head node; its token is in ``environment`` only."""

    address: str
    environment: dict[str, str]

    def ray_job(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """``ray job …`` as a user runs it from the repository."""
        output = log.open("wb") if log is not None else subprocess.DEVNULL
        command = [RAY, "job", arguments[0], "--address", self.address, *arguments[1:]]
        return subprocess.Popen(command, env=self.environment, cwd=REPOSITORY, stdout=output, stderr=output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"waited {limit_s:g} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two CPUs and a dashboard with a token; ended by its process id."""
    folder = tmp_path_factory.mktemp("head")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PYTHONPATH": str(REPOSITORY / "tests"),
    }
    dashboard = free_port()
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir=/tmp/rayjob{os.getpid()}",
        "--object-store-memory=300000000", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    made = Cluster(f"http://127.0.0.1:{dashboard}", environment)
    try:
        nothing = ("submit", "--no-wait", "--", "true")  # refused until the node's agent is up, later than the head
        wait_for(lambda: head.poll() is not None or made.ray_job(*nothing).wait(60) == 0, 120, "the head")
        assert head.poll() is None, log.read_text()
        yield made
    finally:
        head.terminate()  # with --block this ends every process of the node
        head.wait(60)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny run whose reward is a user's function."""
    folder = tmp_path_factory.mktemp("jobs")
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder / "policy")
    splits = ("train", "validation", "test")
    return [
        *(f"task.{name}.options={OPTIONS}" for name in splits), *(f"task.{name}.count=12" for name in splits),
        f"policy.path={folder / 'policy'}", f"run.dir={folder / 'runs'}", "reward.function=reward_functions:length",
        "rollout.group_size=4", "rollout.prompts_per_step=4", "rollout.max_new_tokens=6", "rollout.actors=1",
        "learner.threads=1", "evaluation.final=false", "tracking.enabled=false", "checkpoint.every=1000",
    ]  # fmt: skip


def test_a_stopped_job_leaves_a_complete_checkpoint_and_goes_on(
    cluster: Cluster, overrides: list[str], tmp_path: Path
) -> None:
    train = ["--working-dir", ".", "--", "python", "-m", "ray_jobs.train"]
    runs = next(Path(text.removeprefix("run.dir=")) for text in overrides if text.startswith("run.dir="))
    folder, log = runs / "stopped", tmp_path / "first"
    submission = ["submit", "--submission-id", "first", *train, *overrides, "run.name=stopped", "steps=5000"]
    job = cluster.ray_job(*submission, log=log)
    metrics = folder / "metrics.jsonl"
    three_steps = lambda: metrics.exists() and metrics.read_text().count("\n") >= 3  # noqa: E731
    wait_for(lambda: job.poll() is not None or three_steps(), 150, "three training steps")
    assert job.poll() is None, log.read_text()
    assert cluster.ray_job("stop", "first").wait(60) == 0
    job.wait(60)
    newest = CheckpointStore(folder / "checkpoints").latest()
    assert newest is not None, log.read_text()
    reached = CheckpointStore.step_of(newest)
    assert 3 <= reached < 5000

    log = tmp_path / "second"
    job = cluster.ray_job("submit", *train, "--resume", str(folder), f"steps={reached + 2}", log=log)
    assert job.wait(180) == 0, log.read_text()
    assert f"step {reached + 2}/{reached + 2}" in log.read_text()
    assert (folder / "policy" / "model.safetensors").exists()


def test_a_users_error_fails_the_job_with_one_line(cluster: Cluster, overrides: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    train = ["--working-dir", ".", "--", "python", "-m", "ray_jobs.train"]
    job = cluster.ray_job("submit", *train, *overrides, "rollout.actors=40", log=log)
    assert job.wait(120) != 0
    text = log.read_text()
    assert "error: the cluster is too small: " in text
    assert "rollout.actors 40 × 0.5" in text
    assert "Traceback" not in text
