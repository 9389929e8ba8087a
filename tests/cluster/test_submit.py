"""Jobs: what is sent, how the log is followed over a broken connection, and the exit status."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.authentication.http_token_authentication import format_authentication_http_error
from ray._private.runtime_env.packaging import create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

import bgrpo
from bgrpo.cli.app import main
from bgrpo.cluster import submit as submit_module
from bgrpo.cluster.local_state import ClusterState, StateFolder

LOG = "step 1\nstep 2\nstep 3\ndone\n"


class FakeClient:
    """A cluster whose connection breaks after so many characters, a few times."""

    breaks: list[int]
    status = JobStatus.SUCCEEDED
    submitted: dict[str, Any]
    headers: dict[str, str] | None
    refusal: Exception | None = None

    def __init__(self, address: str, headers: dict[str, str] | None) -> None:
        self.address = address
        type(self).headers = headers
        if self.refusal is not None:
            raise self.refusal

    def submit_job(self, **settings: Any) -> str:
        type(self).submitted = settings
        return "job-1"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else len(LOG)
        for start in range(0, end, 5):
            yield LOG[start : min(start + 5, end)]
        if end < len(LOG):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job: str) -> JobStatus:
        return self.status


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeClient]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    class Client(FakeClient):
        breaks: list[int] = []  # noqa: RUF012 - a fresh class per test

    monkeypatch.setattr(submit_module, "JobSubmissionClient", Client)
    monkeypatch.setattr(submit_module, "POLL_S", 0.0)
    return Client


def test_the_job_runs_the_same_command(client: type[FakeClient], capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:8265"
    assert main(["train", "--config", "quickstart", "--submit", url, "steps=3", "run.dir=a'b; x"]) == 0
    expected = "python -m ray_jobs.train --config quickstart steps=3 'run.dir=a'\"'\"'b; x'"
    assert client.submitted["entrypoint"] == expected
    environment = client.submitted["runtime_env"]
    assert environment["working_dir"] == "."
    assert {".venv", "/runs", ".git"} <= set(environment["excludes"])
    out = capsys.readouterr().out
    assert "job-1" in out
    assert out.endswith(LOG)


def test_the_whole_package_travels_and_runs_do_not(tmp_path: Path) -> None:
    for name in ("runs/first/run.json", "mlruns/0/meta.yaml", "build/lib/x.py", "src/configs/a.yaml"):
        (tmp_path / "work" / name).parent.mkdir(parents=True)
        (tmp_path / "work" / name).write_text("x")
    shutil.copytree(Path(bgrpo.__file__).parent, tmp_path / "work" / "bgrpo", ignore=shutil.ignore_patterns("assets"))
    modules = {path.relative_to(tmp_path / "work").as_posix() for path in (tmp_path / "work").glob("bgrpo/**/*.py")}
    create_package(str(tmp_path / "work"), tmp_path / "sent.zip", True, excludes=submit_module.EXCLUDED)
    sent = {name for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist() if not name.endswith("/")}
    assert modules and modules - sent == set()
    assert {name for name in sent if not name.startswith("bgrpo/")} == {"src/configs/a.yaml"}


def test_a_broken_connection_loses_and_repeats_nothing(client: type[FakeClient]) -> None:
    client.breaks = [9, 0, 4, 16]
    pieces: list[str] = []
    assert submit_module.submit("http://x", "m", [], lambda job: None, pieces.append) == 0
    assert "".join(pieces) == LOG


def test_a_connection_that_stays_broken_says_how_to_go_on(client: type[FakeClient]) -> None:
    client.breaks = [3] * 1000
    with pytest.raises(submit_module.UserError, match=r"it goes on: ray job logs --follow job-1"):
        submit_module.submit("http://x", "m", [], lambda job: None, lambda text: None)


@pytest.mark.parametrize(("status", "expected"), [(JobStatus.FAILED, 1), (JobStatus.STOPPED, 143)])
def test_the_jobs_end_is_the_exit_status(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str], status: JobStatus, expected: int
) -> None:
    client.status = status
    assert main(["train", "--submit", "http://127.0.0.1:8265", "--json"]) == expected
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"job": "job-1", "address": "http://127.0.0.1:8265", "exit_status": expected}
    assert LOG in captured.err


def test_nothing_is_sent_that_the_configuration_refuses(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--submit", "http://127.0.0.1:8265", "rollout.group_size=1"]) == 2
    assert "rollout.group_size=1" in capsys.readouterr().err
    assert not hasattr(client, "submitted")


def test_a_configuration_file_must_travel(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "configs").mkdir(parents=True)
    monkeypatch.chdir(here)
    for path in (here / "configs" / "mine.yaml", tmp_path / "outside.yaml"):
        path.write_text("steps: 3\n")
    assert main(["train", "--config", str(here / "configs" / "mine.yaml"), "--submit", "http://x"]) == 0
    assert client.submitted["entrypoint"].endswith("--config configs/mine.yaml")
    assert main(["train", "--config", "../outside.yaml", "--submit", "http://x"]) == 2
    assert "outside the current folder" in capsys.readouterr().err


def test_no_cluster_there_is_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--submit", "http://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --submit http://127.0.0.1:9: ")
    assert error.count("\n") == 1


URL = "http://127.0.0.1:8265"


def test_no_token_is_made_up(client: type[FakeClient]) -> None:
    assert main(["train", "--submit", URL]) == 0
    assert client.headers is None


def test_the_token_is_taken_from_rays_variables(
    client: type[FakeClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert main(["train", "--submit", URL]) == 0
    assert client.headers == {"Authorization": "Bearer from-a-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert main(["train", "--submit", URL]) == 0
    assert client.headers == {"Authorization": "Bearer itself"}


def test_the_local_clusters_token_goes_to_the_local_cluster_alone(
    client: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder()
    folder.make()
    token = folder.make_token()
    this = psutil.Process()
    folder.write(ClusterState(this.pid, this.create_time(), URL, "/tmp/bgrpo-x", 3))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another")
    for address, sent in [(URL, token), ("http://localhost:8265/", token), ("http://10.0.0.1:8265", "of-another")]:
        assert main(["sweep", "--config", "quick", "--submit", address]) == 0
        assert client.headers == {"Authorization": f"Bearer {sent}"}
    folder.write(ClusterState(this.pid, this.create_time() - 60, URL, "/tmp/bgrpo-x", 3))
    assert main(["train", "--submit", URL]) == 0
    assert client.headers == {"Authorization": "Bearer of-another"}, "that cluster died, its process id lives on"


def test_a_token_file_that_is_missing_is_a_users_error(
    client: type[FakeClient], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/token")
    assert main(["train", "--submit", URL]) == 2
    assert "RAY_AUTH_TOKEN_PATH=/no/such/token: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "advice"), [(401, "wants a token: set RAY_AUTH_TOKEN_PATH"), (403, "refuses the")])
def test_a_refused_token_is_one_line(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str], status: int, advice: str
) -> None:
    client.refusal = AuthenticationError(str(format_authentication_http_error(status, "Unauthorized")))
    assert main(["train", "--submit", URL]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --submit {URL}: this cluster ")
    assert advice in error
    assert error.count("\n") == 1


def test_a_sweep_whose_trials_would_not_start_is_not_sent(
    client: type[FakeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--config", "quick", "--submit", URL, "train.evaluation.beam_width=[1]"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: arm bgrpo, learner.learning_rate=")
    assert "unknown key 'evaluation.beam_width'; did you mean 'evaluation.beam_widths'?" in error
    assert not hasattr(client, "submitted")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "tracking.uri=http://me:hunter2@host"],
        ["train", "--config", "mine.yaml"],
        ["sweep", "--config", "quick", "tracking.uri=postgresql://db/x?password=hunter2"],
    ],
)
def test_no_password_is_sent_with_a_job(
    client: type[FakeClient],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("steps: 3\ntracking: {uri: 'https://me:hunter2@host'}\n")
    assert main([*command, "--submit", URL]) == 2
    error = capsys.readouterr().err
    assert "hunter2" not in error
    assert "***" in error
    assert "MLFLOW_TRACKING_PASSWORD" in error
    assert error.count("\n") == 1
    assert not hasattr(client, "submitted")
