"""The local cluster's state, and how it is ended, with plain processes in Ray's place."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bgrpo.cli.app import main
from bgrpo.cluster import local as local_cluster
from bgrpo.cluster.dashboard_client import Job
from bgrpo.cluster.local import end_cluster, processes_of, stop_jobs
from bgrpo.cluster.local_plan import CLUSTER_VARIABLE
from bgrpo.cluster.local_state import ClusterState, StateFolder
from bgrpo.errors import UserError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
"""Lives on after SIGTERM; its first line says that it does."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StateFolder:
    """``~/.bgrpo/cluster`` of an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return StateFolder()


@pytest.fixture
def spawn() -> Iterator[Callable[..., psutil.Process]]:
    """Starts processes that ignore SIGTERM; what is left of them at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **settings: object) -> psutil.Process:
        command = [sys.executable, "-c", STUBBORN, *arguments]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, **settings)  # type: ignore[call-overload]
        started.append(child)
        assert child.stdout.read(1) == b"\n"
        return psutil.Process(child.pid)

    yield start
    for child in started:
        child.kill()
        child.wait(30)


def state_of(head: psutil.Process, ray_folder: Path, address: str = "http://127.0.0.1:9") -> ClusterState:
    return ClusterState(head.pid, head.create_time(), address, str(ray_folder), 3)


def test_nobody_else_can_read_the_token(folder: StateFolder) -> None:
    old = os.umask(0)
    try:
        folder.make()
        first = folder.make_token()
        second = folder.make_token()
    finally:
        os.umask(old)
    assert first != second
    assert len(second) >= 64
    assert folder.token() == second
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.token_path.stat().st_mode) == 0o600


def test_a_state_is_read_as_written_and_forgotten_with_its_token(folder: StateFolder) -> None:
    assert folder.read() is None
    folder.make()
    folder.make_token()
    state = state_of(psutil.Process(), Path("/tmp/bgrpo-x"))
    folder.write(state)
    assert StateFolder().read() == state
    assert state.head() == psutil.Process()
    folder.forget()
    assert folder.read() is None
    assert folder.token() is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": 1}', "no json"])
def test_a_file_that_is_no_state_is_named(folder: StateFolder, text: str) -> None:
    folder.make()
    (folder.path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json: is no state of a local cluster"):
        folder.read()


def test_one_process_at_a_time_starts_or_ends_the_cluster(folder: StateFolder) -> None:
    with folder.starting(), pytest.raises(UserError, match="another bgrpo cluster"), StateFolder().starting():
        pass
    with StateFolder().starting():
        pass


def test_ending_kills_what_belongs_to_the_cluster_and_nothing_else(
    folder: StateFolder, tmp_path: Path, spawn: Callable[..., psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "END_S", 3.0)
    ray_folder = tmp_path / "bgrpo-1"
    ray_folder.mkdir()
    marked = os.environ | {CLUSTER_VARIABLE: str(ray_folder)}
    head = spawn(start_new_session=True)
    driver = spawn(env=marked, start_new_session=True)
    titled = spawn(f"--session-dir={ray_folder}/session", "/site-packages/ray/dashboard/agent.py")
    reader = spawn(f"--config.file={ray_folder}/session_latest/metrics/prometheus/prometheus.yml")
    other = spawn(env=os.environ | {CLUSTER_VARIABLE: f"{ray_folder}0"}, start_new_session=True)
    state = state_of(head, ray_folder)
    with folder.starting():
        folder.make_token()
    folder.write(state)
    assert set(processes_of(state)) == {head, driver, titled}
    assert end_cluster(folder, state) == []
    gone = [process for process in (head, driver, titled) if process.status() == psutil.STATUS_ZOMBIE]
    assert gone == [head, driver, titled]
    assert [process.status() != psutil.STATUS_ZOMBIE for process in (reader, other)] == [True, True]
    assert not ray_folder.exists()
    assert (folder.read(), folder.token()) == (None, None)


def test_a_process_id_that_is_used_again_is_not_the_head(
    folder: StateFolder, tmp_path: Path, spawn: Callable[..., psutil.Process]
) -> None:
    innocent = spawn(start_new_session=True)
    state = ClusterState(innocent.pid, innocent.create_time() - 100, "http://127.0.0.1:9", str(tmp_path / "gone"), 3)
    folder.make()
    folder.write(state)
    assert state.head() is None
    assert end_cluster(folder, state) == []
    assert innocent.status() != psutil.STATUS_ZOMBIE
    assert folder.read() is None


def test_status_and_down_without_a_cluster(folder: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status"]) == 1
    assert "bgrpo cluster local" in capsys.readouterr().out
    assert main(["cluster", "status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"running": False, "leftover_processes": []}
    assert main(["cluster", "down"]) == 0
    assert capsys.readouterr().out == "no local cluster runs\n"


def test_a_cluster_that_died_is_told_apart_and_cleaned_up(
    folder: StateFolder, tmp_path: Path, spawn: Callable[..., psutil.Process], capsys: pytest.CaptureFixture[str]
) -> None:
    ray_folder = tmp_path / "bgrpo-2"
    ray_folder.mkdir()
    left = spawn(env=os.environ | {CLUSTER_VARIABLE: str(ray_folder)}, start_new_session=True)
    head = spawn(start_new_session=True)
    folder.make()
    folder.write(state_of(head, ray_folder))
    head.kill()
    while head.status() != psutil.STATUS_ZOMBIE:  # until then it lives
        time.sleep(0.01)
    assert main(["cluster", "status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"running": False, "leftover_processes": [left.pid]}
    assert main(["cluster", "status"]) == 1
    assert "1 of its processes are left; remove what is left: bgrpo cluster down" in capsys.readouterr().out
    left.kill()
    assert main(["cluster", "down"]) == 0
    assert not ray_folder.exists()
    assert folder.read() is None


def test_a_second_cluster_is_refused(folder: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.make()
    folder.write(state_of(psutil.Process(), Path("/tmp/bgrpo-x"), "http://127.0.0.1:8265"))
    assert main(["cluster", "local"]) == 2
    error = capsys.readouterr().err
    assert "a local cluster runs already, at http://127.0.0.1:8265" in error
    assert "bgrpo cluster down" in error


def test_a_port_that_is_taken_is_refused_before_anything_starts(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["cluster", "local", "--dashboard-port", str(port)]) == 2
    assert f"--dashboard-port {port}: is taken" in capsys.readouterr().err
    assert folder.read() is None
    assert folder.token() is None


def test_a_head_that_ends_at_once_is_told_with_its_log(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = [sys.executable, "-c", "print('no space for the object store'); raise SystemExit(1)"]
    monkeypatch.setattr(local_cluster, "head_command", lambda *given: failing)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["cluster", "local", "--dashboard-port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the head ended while it started")
    assert "no space for the object store" in error
    assert folder.read() is None
    assert folder.log_path.exists()


class Jobs:
    """A dashboard whose jobs take some questions to stop."""

    def __init__(self, questions: dict[str, int]) -> None:
        self.questions = questions
        self.stopped: list[str] = []

    def jobs(self) -> list[Job]:
        for job in self.stopped:
            self.questions[job] -= 1
        return [Job(job, "RUNNING" if left > 0 else "STOPPED", "x") for job, left in self.questions.items()]

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


def test_jobs_are_stopped_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "POLL_S", 0.0)
    jobs, told = Jobs({"done": 0, "quick": 2, "slow": 5}), []
    assert stop_jobs(jobs, lambda waiting: told.append([job.id for job in waiting])) == []  # type: ignore[arg-type]
    assert jobs.stopped == ["quick", "slow"]
    assert told == [["quick", "slow"], ["slow"]]


def test_a_job_that_does_not_stop_is_named_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "POLL_S", 0.0)
    monkeypatch.setattr(local_cluster, "JOB_STOP_WAIT_S", 0.2)
    monkeypatch.setattr(local_cluster, "END_S", 0.0)
    late = stop_jobs(Jobs({"never": 10**9}), lambda waiting: None)  # type: ignore[arg-type]
    assert [job.id for job in late] == ["never"]
