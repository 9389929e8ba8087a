"""Recording a run in MLflow: explicit run ids, buffered metrics, and a training run that outlives a dead server."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from bgrpo.config import TrackingSection
from bgrpo.errors import UserError, brief
from bgrpo.runs.further_trackers import FurtherTrackers, check_installed
from bgrpo.runs.redaction import redact_credentials, redact_tree
from bgrpo.waits import waiting

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
SERVER_SCHEMES = ("http", "https", "databricks")

FLUSH_ENTRIES = 100
FLUSH_S = 2.0
RETRY_S = 60.0  # after a failure; the metrics wait meanwhile
REST = 10.0  # after a slow answer nothing is sent for this many times as long as it took
MAX_WAITING_METRICS = 100_000
MAX_PARAM_VALUE = 500
METRICS_PER_BATCH = 1000  # MLflow's own limits from here on
MAX_NAME = 250
ANSWER_S = 10.0
"""Longest wait for an answer of a store."""
DATABASE_RETRIES = 3
"""MLflow waits twice as long each time, about a second in all; its own ten are 101 s."""

logger = logging.getLogger(__name__)


class Tracker:
    """One MLflow run. Nothing here ends a training run: when the store fails, one warning says so and training goes on.

    The run is named by its id in every call, never by MLflow's process-wide "active run" or environment variables, so
    that runs nested in other runs (Ray Tune) do not write into each other. Metrics are buffered and sent every
    :data:`FLUSH_S` seconds or :data:`FLUSH_ENTRIES` entries, less often to a slow store; after a failure they wait and
    are sent when the store answers again. What could not be sent until the end is named in a second warning. ``run_id``
    is None when nothing is recorded.

    MLflow's own asynchronous logging drops a batch that fails, and waits at the process's end for every request.
    """

    def __init__(self, client: MlflowClient | None, run_id: str | None, clock: Callable[[], float]) -> None:
        self._client = client
        self.run_id = run_id
        self._clock = clock
        self._waiting: list[Metric] = []
        self._flush_at = clock() + FLUSH_S
        self._rest_until = clock()
        self._warned = False
        self._lost: list[str] = []  # names of artifacts
        self._further: FurtherTrackers | None = None

    @classmethod
    @waiting("MLflow, and whatever else the run is recorded in")
    def start(
        cls,
        config: TrackingSection,
        run_dir: Path | str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Tracker:
        """Start a run, or go on with one.

        Args:
            config: where to record, and whether at all.
            run_dir: folder of all runs; holds the embedded store and its artifacts.
            name: name of the run.
            params: dotted keys and values, recorded for a new run; passwords in URIs are left out.
            tags: recorded for a new run.
            run_id: of the MLflow run to go on with; a new one starts without, or when that was deleted.
            clock: seconds, for the intervals between flushes.

        Raises:
            UserError: ``config.uri`` is of a kind that MLflow does not know, or needs a database driver that is absent.
        """
        tracker, new_file = cls(None, None, clock), None
        if config.also:
            tracker._further = FurtherTrackers(config, Path(run_dir) / name, params)
        if not config.enabled:
            return tracker
        uri = tracking_uri(config, run_dir)
        _prepare_mlflow()
        from mlflow import MlflowClient
        from sqlalchemy.exc import NoSuchModuleError

        try:
            file = _sqlite_file(uri)
            new_file = file if file is not None and not file.exists() else None
            _check_store(uri)
            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(client, config.experiment, uri, Path(run_dir))
            if run_id is None or not _is_kept(client, run_id):
                shown = redact_tree(dict(tags or {}))
                run_id = client.create_run(experiment_id, run_name=name, tags=shown).info.run_id
                client.log_batch(run_id, params=_entries(params), synchronous=True)
            else:
                client.update_run(run_id, status="RUNNING")
        except (ImportError, NoSuchModuleError) as error:
            raise _no_driver(uri, error) from error
        except Exception as error:  # noqa: BLE001 a damaged store makes anything of MLflow's libraries
            if new_file is not None:
                with contextlib.suppress(OSError, ValueError):  # half a store would be in the way of every later run
                    new_file.unlink(missing_ok=True)
            tracker._warn(error, uri, "this run is not recorded there")
            return tracker
        tracker._client, tracker.run_id = client, run_id
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of one training step; names are made valid for MLflow."""
        if self._further is not None:
            self._further.log(step, metrics)
        if self._client is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(valid_name(name), float(value), now_ms, step) for name, value in metrics.items()]
        del self._waiting[:-MAX_WAITING_METRICS]
        now = self._clock()
        if now >= self._rest_until and (now >= self._flush_at or len(self._waiting) >= FLUSH_ENTRIES):
            self._flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a directory with everything in it, under ``folder``."""
        waits = self._warned and self._clock() < self._rest_until
        if waits or not self._attempt("log_artifacts" if path.is_dir() else "log_artifact", str(path), folder):
            self._lost.append(path.name)

    def table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Record a table, which MLflow shows as one; none when it has no rows."""
        if any(columns.values()) and not self._attempt("log_table", data=dict(columns), artifact_file=file):
            self._lost.append(file)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Send what waits and close the run with MLflow's word for how it ended."""
        if self._further is not None:
            self._further.close()
        self._flush()
        closed = not self._waiting and self._attempt("set_terminated", status)
        if self._client is None or (closed and not self._lost):
            return
        steps = sorted({metric.step for metric in self._waiting})
        lost = [f"{len(self._waiting)} metrics of steps {steps[0]} to {steps[-1]}"] if steps else []
        lost += [] if closed else ["how the run ended"]
        logger.warning(
            "MLflow at %s lacks %s; everything is in the run's folder",
            redact_credentials(self._client.tracking_uri),
            ", ".join(lost + self._lost),
        )

    def _flush(self) -> None:
        start = self._clock()
        while batch := self._waiting[:METRICS_PER_BATCH]:  # MLflow splits too, but does not say what it has sent
            if not self._attempt("log_batch", metrics=batch, synchronous=True):
                return
            del self._waiting[: len(batch)]
        now = self._clock()
        self._warned = False
        self._flush_at, self._rest_until = now + FLUSH_S, now + REST * (now - start)

    def _attempt(self, method: str, *arguments: Any, **named: Any) -> bool:
        """Call a method of the client for this run; False when the store failed, which then rests."""
        if self._client is None:
            return True
        try:
            getattr(self._client, method)(self.run_id, *arguments, **named)
        except Exception as error:  # noqa: BLE001 as in start
            self._warn(error, self._client.tracking_uri, "it is tried again every minute")
            self._rest_until = self._clock() + RETRY_S
            return False
        return True

    def _warn(self, error: Exception, uri: str, consequence: str) -> None:
        """Once per outage."""
        if self._warned:
            return
        self._warned = True
        reason = redact_credentials(" ".join(str(error).split()))[:300]
        logger.warning(
            "MLflow at %s failed: %s; training goes on, %s; every metric is kept in the run's metrics.jsonl",
            redact_credentials(uri),
            reason,
            consequence,
        )


def check_tracking(config: TrackingSection, run_dir: Path | str) -> None:
    """What can be known before a run begins of where it is to be recorded; no store is opened.

    Raises:
        UserError: see :func:`tracking_uri` and :func:`bgrpo.runs.further_trackers.check_installed`; or a database
            whose driver is absent.
    """
    check_installed(config.also)
    if not config.enabled:
        return
    uri = tracking_uri(config, run_dir)
    if urlsplit(uri).scheme in SERVER_SCHEMES or uri == "databricks":
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
        if "\0" in (url.database or ""):
            raise ValueError("embedded null byte")
    except (ImportError, NoSuchModuleError) as error:
        raise _no_driver(uri, error) from error
    except (SQLAlchemyError, ValueError) as error:
        raise UserError(f"tracking.uri={redact_credentials(uri)}: is no URI of a database ({brief(error)})") from error


def _no_driver(uri: str, error: Exception) -> UserError:
    return UserError(
        f"tracking.uri={redact_credentials(uri)}: its database driver is not installed ({error}); install it, or give "
        f"the address of an MLflow server"
    )


def tracking_uri(config: TrackingSection, run_dir: Path | str) -> str:
    """The store to record in: ``config.uri``, or ``mlflow.db`` (sqlite) in the folder of all runs, whatever its name.

    Raises:
        UserError: no URI, or of a kind that MLflow has no store for.
    """
    if config.uri is None:
        from sqlalchemy.engine import URL

        path = os.path.realpath(Path(run_dir) / "mlflow.db")  # raises nothing, whatever stands there
        return URL.create("sqlite", database=path).render_as_string(hide_password=False)
    try:
        parts = urlsplit(config.uri)
        is_server, is_file = parts.scheme in ("http", "https"), parts.scheme.partition("+")[0] == "sqlite"
        has_server = not is_server or (parts.hostname and (parts.port or True))
    except ValueError as error:  # a bracket of an IPv6 address that is not closed, a port that is no number
        raise UserError(f"tracking.uri={redact_credentials(config.uri)}: is no URI ({error})") from error
    if not has_server:
        raise UserError(
            f"tracking.uri={redact_credentials(config.uri)}: names no server; expected for example "
            f"http://127.0.0.1:5000"
        )
    if is_file and parts.path in ("", "/", "/:memory:"):
        raise UserError(
            f"tracking.uri={config.uri}: names no file, so nothing would be kept; expected for example "
            f"sqlite:///mlflow.db, or tracking.enabled=false"
        )
    if parts.scheme.partition("+")[0] not in SCHEMES and config.uri != "databricks":
        raise UserError(
            f"tracking.uri={redact_credentials(config.uri)}: expected a URI that starts with one of "
            f"{', '.join(SCHEMES)}, for example http://127.0.0.1:5000"
        )
    return config.uri


def open_command(uri: str) -> str:
    """What to type, or where to look, to see the runs of a store."""
    if urlsplit(uri).scheme in SERVER_SCHEMES:
        return redact_credentials(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(redact_credentials(uri))} --host 127.0.0.1"


def valid_name(name: str) -> str:
    """A metric's or parameter's name as MLflow accepts it: ``beam@10`` becomes ``beam_at_10``."""
    name = re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_NAME].rstrip("/") or "_"


def _entries(params: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    texts = [(valid_name(key), redact_credentials(str(value))) for key, value in params.items()]
    return [
        Param(key, text if len(text) <= MAX_PARAM_VALUE else f"{text[: MAX_PARAM_VALUE - 1]}…") for key, text in texts
    ]


def _experiment(client: MlflowClient, name: str, uri: str, run_dir: Path) -> str:
    """Id of the experiment; made when absent. Of runs that start together, one makes it and the others take it."""
    from mlflow.exceptions import MlflowException

    is_server = urlsplit(uri).scheme in SERVER_SCHEMES or uri == "databricks"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(
                name, artifact_location=None if is_server else Path(os.path.realpath(run_dir / "mlartifacts")).as_uri()
            )
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _is_kept(client: MlflowClient, run_id: str) -> bool:
    """False when the store has no such run, or a deleted one."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _sqlite_file(uri: str) -> Path | None:
    """The file of an embedded store; None for all others."""
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite:"):
        return None
    url = make_url(uri)
    return None if url.query or url.database in (None, "", ":memory:") else Path(url.database)


def _check_store(uri: str) -> None:
    """Look whether a database can be opened, in bounded time: MLflow tries for minutes, in silence.

    Raises:
        OSError, sqlite3.Error: it cannot.
    """
    from sqlalchemy.engine import make_url

    if (file := _sqlite_file(uri)) is not None:
        with contextlib.closing(sqlite3.connect(file, timeout=ANSWER_S)) as database:
            database.execute("BEGIN IMMEDIATE")
    elif urlsplit(uri).scheme not in SERVER_SCHEMES and uri != "databricks":
        url = make_url(uri)
        if url.host is not None and url.port is not None:
            socket.create_connection((url.host, url.port), ANSWER_S).close()


def _prepare_mlflow() -> None:
    """Before MLflow is used: no telemetry, seconds rather than minutes of retries, no log lines beside our one."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{ANSWER_S:g}")
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = DATABASE_RETRIES
    utils._make_parent_dirs_if_sqlite = lambda db_uri: None  # it would make folders named as the URI spells them
    for name in ("alembic", "mlflow", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
