"""MLflow tracking: what is recorded, what is not, and what a dead or misused store does to a run (nothing)."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
import socket
import sqlite3
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
from bgrpo.runs import mlflow_tracking
from bgrpo.runs.mlflow_tracking import Tracker, check_tracking, open_command, tracking_uri, valid_name

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


def said_of(text: str) -> list[str]:
    """The lines, but for those which a slow machine is waited with."""
    return [line for line in text.splitlines() if not line.startswith("waiting: ")]


def test_a_new_store_is_made_without_a_word(first_use: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = first_use
    assert (done.returncode, done.stdout, said_of(done.stderr)) == (0, "", [])
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


AWKWARD = ["a%20b", "q?x=1", "h#f", "ünï cödé", "at@x:1", "x%3Fy", "pl+us", "a b;&'\"$(c)", "%", "50%_x"]


@pytest.mark.parametrize("name", AWKWARD)
def test_the_store_lies_in_the_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    """As the database library reads the URI; and the command to open it survives a shell."""
    from sqlalchemy import create_engine

    folder = tmp_path / name
    folder.mkdir()
    uri = tracking_uri(SECTION, folder)
    with create_engine(uri).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a)")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "mlflow.db"]
    assert shlex.split(open_command(uri))[3] == uri, "nothing in it looks like a password"


def test_store_and_artifacts_lie_in_an_awkward_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a%20b ?x=1#ü@h"
    folder.mkdir(parents=True)
    tracker = _start(folder)
    (tmp_path / "runs" / "report.png").touch()
    tracker.artifact(tmp_path / "runs" / "report.png")
    tracker.finish("FINISHED")
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("gone", ["deleted", "never there"])
def test_a_run_that_is_gone_is_recorded_anew(run_dir: Path, gone: str) -> None:
    client, known = _client(run_dir), "0" * 32
    if gone == "deleted":
        first = _start(run_dir)
        first.finish("KILLED")
        known = str(first.run_id)
        client.delete_run(known)
    tracker = _start(run_dir, {"a": 1}, run_id=known)
    tracker.log(3, {"kl": 1.0})
    tracker.finish("FINISHED")
    assert tracker.run_id not in (None, known)
    again = client.get_run(tracker.run_id)
    assert (again.info.status, again.data.params, again.data.metrics) == ("FINISHED", {"a": "1"}, {"kl": 1.0})


FULL_DISK = """
import resource, signal, sys, logging
from pathlib import Path
from bgrpo.config import TrackingSection, load_config
from bgrpo.runs.mlflow_tracking import Tracker
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
folder, late = Path(sys.argv[1]), sys.argv[2] == "late"
if not late: limit(50_000)
tracker = Tracker.start(load_config(TrackingSection, None), folder, "r", {"a": 1})
if late: limit(50_000)
for step in range(400): tracker.log(step, {f"m{i}": 1.0 for i in range(50)})
tracker.artifact(Path(sys.executable))
tracker.finish("FINISHED")
"""


@pytest.mark.parametrize(("when", "lines"), [pytest.param("early", 1, marks=pytest.mark.long), ("late", 2)])
def test_a_full_disk_costs_a_line_and_the_store_can_be_used_again(tmp_path: Path, when: str, lines: int) -> None:
    """A second line, at the end, says what is missing."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), when], capture_output=True, text=True, timeout=250
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert len(said_of(done.stderr)) == lines, done.stderr
    assert all(line.startswith(f"MLflow at sqlite:///{tmp_path}") for line in said_of(done.stderr))
    assert _start(tmp_path).run_id is not None


@pytest.mark.parametrize("kind", ["a folder", "no folder", "a circle of links", "locked", "postgresql", "mysql"])
def test_a_store_that_cannot_be_opened_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """MLflow is not even asked: it would try ten times, for 101 s."""
    import mlflow

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("MLflow was asked")

    monkeypatch.setattr(mlflow, "MlflowClient", refuse)
    monkeypatch.setattr(mlflow_tracking, "ANSWER_S", 0.2)
    section, file = SECTION, tmp_path / "mlflow.db"
    with contextlib.ExitStack() as held:
        if kind == "a folder":
            file.mkdir()
        elif kind == "a circle of links":
            file.symlink_to(file)
        elif kind == "no folder":
            section = load_config(TrackingSection, None, [f"uri=sqlite:///{tmp_path}/none/x.db"])
        elif kind == "locked":
            other = held.enter_context(contextlib.closing(sqlite3.connect(file)))
            other.execute("BEGIN IMMEDIATE")
        else:
            bound = held.enter_context(socket.socket())
            bound.bind(("127.0.0.1", 0))
            section = load_config(TrackingSection, None, [f"uri={kind}://u:p@127.0.0.1:{bound.getsockname()[1]}/d"])
        assert Tracker.start(section, tmp_path, "r", {}).run_id is None
    (record,) = [record for record in caplog.records if record.name == "bgrpo.runs.mlflow_tracking"]
    assert "this run is not recorded there" in record.getMessage() and "\n" not in record.getMessage()


def test_a_database_whose_names_are_no_text_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE experiments (x)")
        database.commit()
    file.write_bytes(file.read_bytes().replace(b"TABLE experiments", b"TABL\xd1 experiments"))
    assert _start(tmp_path).run_id is None
    (record,) = [record for record in caplog.records if record.name == "bgrpo.runs.mlflow_tracking"]
    assert "this run is not recorded there" in record.getMessage()


WRONG_STORES = [
    "insert into alembic_version values ('bd07f7e963c5')",
    "update alembic_version set version_num = 'ffffffffffff'",
    "delete from alembic_version",
    "drop table runs",
    "update experiments set artifact_location = 's3://nope/x'",
    "drop table latest_metrics",
    "update experiments set artifact_location = 'foo://bar'",
    "create trigger x before insert on runs begin select raise(abort, 'no'); end",
    "create trigger x before insert on metrics begin select raise(abort, 'no'); end",
    "create trigger x before update on runs begin select raise(abort, 'no'); end",
]


def _assert_the_run_goes_on(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All that a run does with its store ends in warnings of one line."""
    tracker = _start(run_dir, {"a": 1})
    tracker.log(1, {"kl": 0.5})
    tracker.artifact(run_dir / "mlflow.db")
    tracker.finish("FINISHED")
    told = [record.getMessage() for record in caplog.records if record.name == "bgrpo.runs.mlflow_tracking"]
    assert "training goes on" in told[0] and all("\n" not in line for line in told)


@pytest.mark.parametrize("statement", WRONG_STORES)
def test_a_store_with_something_wrong_in_it_costs_a_warning(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    shutil.copy(run_dir / "mlflow.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute(statement)
        database.commit()
    _assert_the_run_goes_on(tmp_path, caplog)


class UnknownError(Exception):
    """As a library of MLflow's libraries may raise."""


@pytest.mark.parametrize(
    "error", [UnknownError("odd\nvalue"), RuntimeError(), RecursionError("deep"), AssertionError()]
)
@pytest.mark.parametrize(
    "method", ["get_experiment_by_name", "create_run", "log_batch", "log_artifact", "set_terminated"]
)
def test_whatever_mlflow_raises_does_not_stop_the_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    method: str, error: Exception,
) -> None:  # fmt: skip
    from mlflow import MlflowClient

    def fail(*_: Any, **__: Any) -> None:
        raise error

    shutil.copy(run_dir / "mlflow.db", tmp_path)
    monkeypatch.setattr(MlflowClient, method, fail)
    _assert_the_run_goes_on(tmp_path, caplog)


def test_a_name_that_no_file_can_have_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = load_config(TrackingSection, None, ["uri='sqlite:///%00.db'"])
    assert Tracker.start(section, tmp_path, "r", {}).run_id is None
    assert "not recorded" in caplog.text


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
    with pytest.raises(UserError, match=r"uri.*expected") as refusal:
        tracking_uri(load_config(TrackingSection, None, [f"uri={uri!r}"]), tmp_path)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://", "names no server"),
        ("https:///x", "names no server"),
        ("http://[::1", "is no URI"),
        ("http://me:hunter2@127.0.0.1:port", "is no URI"),
        ("http://127.0.0.1:70000", "is no URI"),
        ("postgresql://[::1/x", "is no URI"),
        ("sqlite+nope:///x.db", "driver is not installed"),
        ("mssql://me:hunter2@127.0.0.1/x", "driver is not installed"),
        ("postgresql://127.0.0.1:port/x", "is no URI"),
        ("sqlite:///%00.db", "is no URI"),
        *((uri, "names no file") for uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://")),
        ("file:///tmp/x", "expected a URI"),
    ],
)
def test_what_can_be_no_store_is_refused_before_a_run_begins(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^tracking\.uri=.*{message}") as refusal:
        check_tracking(load_config(TrackingSection, None, [f"uri={uri!r}"]), tmp_path)
    assert "hunter2" not in str(refusal.value) and list(tmp_path.iterdir()) == []
    check_tracking(load_config(TrackingSection, None, [f"uri={uri!r}", "enabled=false"]), tmp_path)


@pytest.mark.parametrize("uri", ["http://[::1]:5000", "https://host/x?y=1", "databricks", "sqlite:///x.db", "null"])
def test_what_can_be_a_store_passes(tmp_path: Path, uri: str) -> None:
    check_tracking(load_config(TrackingSection, None, [f"uri={uri}"]), tmp_path)


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
