"""MLflow tracking: what is recorded, what is not, and what a dead or misused store does to a run (nothing)."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.config import TrackingSection, load_config
from bgrpo.errors import UserError
from bgrpo.runs.mlflow_tracking import Tracker, open_command, tracking_uri, valid_name

SECTION = load_config(TrackingSection, None)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A new store, made by a process of its own; once for this file, since making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("runs")
    script = (
        "import sys; from bgrpo.config import TrackingSection, load_config; "
        "from bgrpo.runs.mlflow_tracking import Tracker; "
        "t = Tracker.start(load_config(TrackingSection, None), sys.argv[1], 'r', {'a': 1}); t.log(1, {'kl': 1.0}); "
        "t.finish('FINISHED')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)
    return folder, done


@pytest.fixture
def run_dir(first_use: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """A folder of runs with its store."""
    return first_use[0]


def _client(run_dir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(SECTION, run_dir))


def _start(run_dir: Path, params: Mapping[str, Any] | None = None, **kwargs: Any) -> Tracker:
    return Tracker.start(SECTION, run_dir, "test run", params or {}, **kwargs)


def test_a_new_store_is_made_without_a_word(first_use: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = first_use
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "mlflow.db").is_file()


def test_one_run_holds_parameters_metrics_and_artifacts(run_dir: Path, tmp_path: Path) -> None:
    params = {"rollout.group_size": 10, "long": "x" * 900} | {f"p{i}": i for i in range(150)}
    tracker = _start(run_dir, params, tags={"algorithm": "bgrpo"})
    tracker.log(1, {"reward_mean": 0.25, "beam@10": 0.5, "outcome/correct": 3})
    tracker.log(2, {"reward_mean": 0.5, "kl": float("nan")})
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    tracker.artifact(tmp_path / "policy", "policy")
    (tmp_path / "report.png").write_bytes(b"png")
    tracker.artifact(tmp_path / "report.png")
    tracker.finish("FINISHED")

    client = _client(run_dir)
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test run"
    assert run.data.tags["algorithm"] == "bgrpo"
    assert run.data.params["rollout.group_size"] == "10"
    assert len(run.data.params) == 152
    assert len(run.data.params["long"]) == 500
    history = client.get_metric_history(tracker.run_id, "reward_mean")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.25), (2, 0.5)]
    assert run.data.metrics["beam_at_10"] == 0.5
    assert run.data.metrics["outcome/correct"] == 3
    assert (run_dir / "mlartifacts" / tracker.run_id / "artifacts" / "policy" / "config.json").is_file()
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"policy", "report.png"}


def test_resuming_goes_on_with_the_same_run(run_dir: Path) -> None:
    first = _start(run_dir, {"a": 1})
    first.log(1, {"kl": 1.0})
    first.finish("KILLED")
    second = _start(run_dir, {"a": 2}, run_id=first.run_id)
    assert second.run_id == first.run_id
    client = _client(run_dir)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.log(2, {"kl": 2.0})
    second.finish("FINISHED")
    assert [entry.step for entry in client.get_metric_history(first.run_id, "kl")] == [1, 2]
    assert client.get_run(first.run_id).data.params == {"a": "1"}


def test_run_ids_and_stores_in_the_environment_are_ignored(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = _start(run_dir)
    assert other.run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", other.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tracker = _start(run_dir)
    tracker.log(1, {"kl": 1.0})
    tracker.finish("FINISHED")
    assert tracker.run_id not in (None, other.run_id)
    assert _client(run_dir).get_run(other.run_id).data.metrics == {}
    assert _client(run_dir).get_run(tracker.run_id).data.metrics == {"kl": 1.0}


def test_logging_waits_for_the_answer_whatever_the_environment_says(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's asynchronous logging drops what fails, and nobody would know what is missing."""
    from mlflow.store.tracking.abstract_store import AbstractStore

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asynchronous")

    monkeypatch.setattr(AbstractStore, "log_batch_async", refuse)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    tracker = _start(run_dir, {"a": 1})
    tracker.log(1, {"kl": 1.0})
    tracker.finish("FINISHED")
    assert tracker.run_id is not None
    assert _client(run_dir).get_run(tracker.run_id).data.metrics == {"kl": 1.0}


def test_metrics_are_sent_in_batches(run_dir: Path) -> None:
    clock = Clock()
    tracker = _start(run_dir, clock=clock)
    client = _client(run_dir)

    def recorded() -> dict[str, float]:
        return client.get_run(tracker.run_id).data.metrics

    tracker.log(1, {"kl": 1.0})
    assert recorded() == {}
    clock.now = 3.0
    tracker.log(2, {"kl": 2.0})
    assert recorded() == {"kl": 2.0}
    tracker.log(3, {f"m{i}": 0.0 for i in range(120)})
    assert len(recorded()) == 121, "many entries do not wait for the clock"
    tracker.finish("FINISHED")


def test_an_outage_costs_one_warning_and_no_metric(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    clock = Clock()
    tracker = _start(run_dir, clock=clock)
    attempts = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(clock.now)
        raise MlflowException("connection to https://me:hunter2@host refused")

    with monkeypatch.context() as outage, caplog.at_level(logging.WARNING, logger="bgrpo.runs.mlflow_tracking"):
        outage.setattr(MlflowClient, "log_batch", refuse)
        for step in range(1, 301):
            clock.now = float(step)
            tracker.log(step, {"kl": float(step), "entropy": 1.0})
    assert len(caplog.records) == 1
    assert "metrics.jsonl" in caplog.text
    assert "hunter2" not in caplog.text
    assert 3 <= len(attempts) <= 6, "a dead store is asked once a minute, not at every step"
    tracker.finish("FINISHED")
    history = _client(run_dir).get_metric_history(tracker.run_id, "kl")
    assert sorted(entry.step for entry in history) == list(range(1, 301))


def test_a_server_that_is_down_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:  # a port that nobody listens on
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    section = load_config(TrackingSection, None, [f"uri=http://me:hunter2@127.0.0.1:{port}"])
    with caplog.at_level(logging.WARNING, logger="bgrpo.runs.mlflow_tracking"):
        tracker = Tracker.start(section, tmp_path, "r", {})
        tracker.log(1, {"kl": 1.0})
        tracker.artifact(tmp_path)
        tracker.finish("FINISHED")
    assert tracker.run_id is None
    warnings = [record for record in caplog.records if record.name == "bgrpo.runs.mlflow_tracking"]
    assert len(warnings) == 1
    assert "not recorded" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_file_that_is_no_database_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 1000)
    assert Tracker.start(SECTION, tmp_path, "r", {}).run_id is None
    assert "not recorded" in caplog.text


@pytest.mark.parametrize("scheme", ["mssql+absent", "mssql+pymssql"])
def test_a_missing_database_driver_is_named(tmp_path: Path, scheme: str) -> None:
    section = load_config(TrackingSection, None, [f"uri={scheme}://me:hunter2@127.0.0.1/x"])
    with pytest.raises(UserError, match="driver") as refusal:
        Tracker.start(section, tmp_path, "r", {})
    assert "hunter2" not in str(refusal.value)


def test_switched_off_nothing_is_written(tmp_path: Path) -> None:
    tracker = Tracker.start(load_config(TrackingSection, None, ["enabled=false"]), tmp_path, "r", {})
    tracker.log(1, {"kl": 1.0})
    tracker.finish("FINISHED")
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["ftp://host/x", "runs/mlflow", "", "htp://me:hunter2@host"])
def test_an_unknown_kind_of_store_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri.*expected") as refusal:
        tracking_uri(load_config(TrackingSection, None, [f"uri={uri!r}"]), tmp_path)
    assert "hunter2" not in str(refusal.value)


def test_passwords_in_parameters_are_not_recorded(run_dir: Path) -> None:
    tracker = _start(
        run_dir, {"tracking.uri": "https://me:hunter2@host/x", "other": "postgresql://u:p@ss@db/x?password=s"}
    )
    params = _client(run_dir).get_run(tracker.run_id).data.params
    assert params == {"tracking.uri": "https://***@host/x", "other": "postgresql://***@db/x?password=***"}


def test_how_to_open(tmp_path: Path) -> None:
    command = open_command(tracking_uri(SECTION, tmp_path))
    assert command == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db --host 127.0.0.1"
    assert open_command("http://me:hunter2@host:5000") == "http://***@host:5000"


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_name_becomes_one_that_mlflow_accepts(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    _validate_metric_name(valid_name(name))
    _validate_param_name(valid_name(name))
    assert len(valid_name(name)) <= 250


def test_a_table_is_recorded_as_one(run_dir: Path) -> None:
    tracker = _start(run_dir)
    tracker.table({"step": [1, 2], "completion": ["<b>", "=1+1"], "score": [None, 0.5]}, "samples-to-step-2.json")
    tracker.table({}, "none.json")
    tracker.finish("FINISHED")
    client = _client(run_dir)
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["samples-to-step-2.json"]
    assert "samples-to-step-2.json" in client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"]
    (path,) = run_dir.glob(f"mlartifacts/{tracker.run_id}/artifacts/samples-to-step-2.json")
    assert json.loads(path.read_text())["data"] == [[1, "<b>", None], [2, "=1+1", 0.5]]
