"""One machine, no Docker: the runbook's commands, run on the cluster that ``bgrpo cluster local`` makes.

One cluster serves all tests here, in their order: it starts, grows under a training run, is scanned, shrinks, and ends.
Without the long ones its head alone starts, is scanned, and ends.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import yaml
from local_cluster import COMMANDS, REPOSITORY, URL, RunbookShell, free_port, wait_for
from open_sockets import METHODS, grpc_codes, http_answer, listeners, what_is_open

from bgrpo.cluster.local import metrics_folder, processes_of
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
OPTIONS = {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}
URI_CANARY, PASSWORD_CANARY = secrets.token_hex(16), secrets.token_hex(16)  # this file travels to the cluster

LOCAL = "bgrpo cluster local --max-nodes 3"
EXPORT = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.bgrpo/cluster/token"
STOP = f"ray job stop --address {URL} JOB"
RESUME = f"bgrpo train --resume /runs/RUN --submit {URL}"
SUBMIT = f"bgrpo train --config quickstart --submit {URL}"
DENIED = "curl --silent --output /dev/null --write-out '%{http_code}\\n' http://127.0.0.1:8265/api/jobs/"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunbookShell]:
    """The cluster: up to two nodes of two CPUs. At its end nothing of it may be left."""
    home = tmp_path_factory.mktemp("home")
    shell = RunbookShell.make(home, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PASSWORD_CANARY})
    limits = ("--cpus-per-node=2", "--idle-minutes=0.1", f"--dashboard-port={shell.port}")
    shell.run(LOCAL, *limits, limit_s=300, **{"nodes 3": "nodes 2"})
    state = shell.folder.read()
    assert state is not None
    try:
        shell.export(EXPORT)
        yield shell
    finally:
        shell.run("bgrpo cluster down", limit_s=200)
        assert processes_of(state) == []
        assert not Path(state.folder).exists()
        assert shell.folder.token() is None
    shell.run("bgrpo cluster status", limit_s=240, expect=1)


@dataclass(frozen=True, slots=True)
class Training:
    """A tiny run whose reward is a user's function, and whose rollout actors do not run on the head.

    Attributes:
        config: a file outside the folder that is sent, as an administrator may keep one on the head.
        runs: folder of all runs.
    """

    config: Path
    runs: Path


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("jobs")
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder / "policy")
    problems = {"options": OPTIONS, "count": 12}
    tree = {
        "task": {"train": problems, "validation": problems, "test": problems},
        "policy": {"path": str(folder / "policy")},
        "run": {"dir": str(folder / "runs")},
        "reward": {"function": "reward_functions:length"},
        "rollout": {"group_size": 4, "prompts_per_step": 4, "max_new_tokens": 6, "node_resource": "rollout"},
        "learner": {"threads": 1, "node_resource": "learner"},
        "evaluation": {"final": False},
        "checkpoint": {"every": 1000},
        "tracking": {"uri": f"http://me:{URI_CANARY}@127.0.0.1:{free_port()}"},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    return Training(config, folder / "runs")


@pytest.mark.long
def test_a_node_joins_for_actors_that_have_no_room(shell: RunbookShell, training: Training, tmp_path: Path) -> None:
    assert [node["is_head"] for node in shell.status()["nodes"]] == [True]
    command = ["ray", "job", "submit", "--address", shell.address, "--submission-id", "first", "--working-dir", "."]
    train = ["--", "python", "-m", "ray_jobs.train", "--config", str(training.config)]
    more = ["run.name=stopped", "steps=100000", "rollout.actors=3"]
    log, folder = tmp_path / "first", training.runs / "stopped"
    with log.open("wb") as output:
        job = subprocess.Popen(
            [*command, *train, *more], env=shell.environment, cwd=REPOSITORY, stdout=output, stderr=output
        )
    metrics = folder / "metrics.jsonl"
    three_steps = lambda: metrics.exists() and metrics.read_text().count("\n") >= 3  # noqa: E731
    wait_for(lambda: job.poll() is not None or three_steps(), 400, "three training steps")
    assert job.poll() is None, log.read_text()
    assert [node["is_head"] for node in shell.status()["nodes"]] == [True, False]


def test_nothing_listens_beyond_this_machine_or_acts_without_the_token(shell: RunbookShell) -> None:
    state, token = shell.folder.read(), shell.folder.token()
    assert state is not None
    found = listeners(processes_of(state))
    for name in ("gcs_server", "raylet", "dashboard"):
        assert any(name in listener.process for listener in found), f"no socket of the {name} was found"
    assert [listener for listener in found if not listener.is_loopback] == []
    with ThreadPoolExecutor(len(found)) as probes:  # each waits for answers, some for the time limit
        assert [problem for problems in probes.map(what_is_open, found) for problem in problems] == []

    assert shell.run(DENIED, limit_s=240).strip() == "401"
    assert http_answer(shell.port, "GET", "/api/jobs/", token="wrong") == (
        403,
        "Forbidden: Invalid authentication token",
    )
    answer = http_answer(shell.port, "GET", "/api/jobs/", token=token)
    assert answer is not None
    assert answer[0] == 200
    gcs = next(listener for listener in found if "gcs_server" in listener.process)
    assert grpc_codes(gcs.port, token)[METHODS[0]] == grpc.StatusCode.OK, "the probe is one that works with the token"


@pytest.mark.long
def test_the_commands_to_watch_with(shell: RunbookShell) -> None:
    status = shell.status()
    assert status["address"] == shell.address
    assert {"learner", "rollout"} <= {name for node in status["nodes"] for name in node["resources"]}
    assert ("first", "RUNNING") in [(job["id"], job["status"]) for job in status["jobs"]]
    assert "first" in shell.run("bgrpo cluster status", limit_s=240)
    assert "submission_id='first'" in shell.run(f"ray job list --address {URL}", limit_s=240)
    state = shell.folder.read()
    assert state is not None
    metrics = metrics_folder(Path(state.folder))
    assert (metrics / "prometheus" / "prometheus.yml").is_file()
    assert (metrics / "grafana" / "grafana.ini").is_file()
    assert (metrics / "grafana" / "dashboards" / "bgrpo.json").is_file()


@pytest.mark.long
def test_a_stopped_job_leaves_a_complete_checkpoint_goes_on_and_its_node_leaves(
    shell: RunbookShell, training: Training
) -> None:
    folder = training.runs / "stopped"
    shell.run(STOP, JOB="first", limit_s=200)
    assert "run stopped in " in shell.run(f"ray job logs --address {URL} --follow JOB", JOB="first", limit_s=240)
    newest = CheckpointStore(folder / "checkpoints").latest()
    assert newest is not None
    reached = CheckpointStore.step_of(newest)
    assert 3 <= reached < 100000

    more = [f"steps={reached + 2}", "rollout.actors=1", f"tracking.uri=sqlite:///{training.runs}/mlflow.db"]
    text = shell.run(RESUME, *more, limit_s=300, **{"/runs/RUN": str(folder)})
    assert f"step {reached + 2}/{reached + 2}" in text
    assert (folder / "policy" / "model.safetensors").exists()
    wait_for(lambda: len(shell.status()["nodes"]) == 1, 120, "the idle node to leave")


@pytest.mark.long
def test_a_users_error_fails_the_job_with_one_line(shell: RunbookShell, training: Training) -> None:
    text = shell.run(SUBMIT, f"run.dir={training.runs}", "policy.path=/nowhere", limit_s=200, expect=1)
    assert "error: policy /nowhere: no such directory" in text
    assert "Traceback" not in text


@pytest.mark.long
def test_no_secret_is_written_anywhere(shell: RunbookShell, training: Training) -> None:
    """After runs that were given all of them: logs of Ray and bgrpo, run folder, MLflow store, and the terminal."""
    state, token = shell.folder.read(), shell.folder.token()
    assert state is not None
    assert token is not None
    canaries = [token.encode(), URI_CANARY.encode(), PASSWORD_CANARY.encode()]
    files = {path: contents(path) for root in (Path(state.folder), training.runs) for path in root.rglob("*")}
    files[shell.folder.log_path] = contents(shell.folder.log_path)
    (driver_log,) = [text for path, text in files.items() if path.name == "job-driver-first.log"]
    assert b"http://***@127.0.0.1" in driver_log, "the run was given the address with its password"
    assert len(files[training.runs / "mlflow.db"]) > 0
    assert [(path, secret) for path, text in files.items() for secret in canaries if secret in text] == []
    assert not any(secret.decode() in text for text in shell.output for secret in canaries)


@pytest.mark.long
def test_what_the_runbook_calls_run_was_run(shell: RunbookShell) -> None:
    assert COMMANDS - shell.used == {"bgrpo cluster down"}, "which comes last"


def contents(path: Path) -> bytes:
    """Of a file; nothing for sockets, folders, and files that have gone."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""
