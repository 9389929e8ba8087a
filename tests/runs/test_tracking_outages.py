"""An MLflow server that hangs, answers 500, is slow, or is gone: a run goes on, catches up, or says what is missing."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bgrpo.config import TrackingSection, load_config
from bgrpo.runs.mlflow_tracking import REST, Tracker

PATIENCE_S, HURRY_S = 60, 1  # for a server that answers, and for one that does not
INFO = {
    "run_id": "r1", "run_uuid": "r1", "experiment_id": "0", "status": "RUNNING", "start_time": 1,
    "artifact_uri": "mlflow-artifacts:/0/r1/artifacts", "lifecycle_stage": "active",
}  # fmt: skip
EXPERIMENT = {
    "experiment_id": "0",
    "name": "bgrpo",
    "lifecycle_stage": "active",
    "artifact_location": "mlflow-artifacts:/0",
}


class Server:
    """The few answers of MLflow's REST interface that a tracker needs; ``mode``: good, broken or silent."""

    def __init__(self, set_timeout: Callable[[int], None]) -> None:
        self._set_timeout = set_timeout
        self.turn("good")
        self.delay_s = 0.0
        self.steps: list[int] = []
        self.calls: list[str] = []
        self.status: str | None = None
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.answer(self)

            do_GET = do_PATCH = do_POST

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def turn(self, mode: str) -> None:
        self.mode = mode
        self._set_timeout(PATIENCE_S if mode == "good" else HURRY_S)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        call = request.path.partition("?")[0].rpartition("/mlflow/")[2]
        self.calls.append(call)
        if self.mode == "silent":
            self.released.wait(120)
            return
        time.sleep(self.delay_s)
        status, reply = self._reply(call, json.loads(body or "{}")) if self.mode == "good" else (500, {})
        data = json.dumps(reply).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _reply(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if call == "runs/log-batch":
            self.steps += [metric["step"] for metric in body.get("metrics", []) if metric["key"] == "kl"]
        if call == "runs/update":
            self.status = body.get("status")
        answers = {
            "experiments/get-by-name": {"experiment": EXPERIMENT},
            "runs/create": {"run": {"info": INFO, "data": {}}},
            "runs/get": {"run": {"info": INFO, "data": {}}},
            "runs/update": {"run_info": INFO},
        }
        return 200, answers.get(call, {})

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = Server(lambda seconds: monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(seconds)))
    yield made
    made.close()


class Clock:
    """Time that passes only when told, and with what really passes."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


def start(server: Server, folder: Path, clock: Clock) -> Tracker:
    section = load_config(TrackingSection, None, [f"uri={server.uri}"])
    tracker = Tracker.start(section, folder, "r", {"a": 1}, clock=clock)
    assert tracker.run_id == "r1"
    return tracker


def log_steps(tracker: Tracker, first: int, last: int, clock: Clock, seconds_per_step: float) -> None:
    for step in range(first, last + 1):
        clock.skipped += seconds_per_step
        tracker.log(step, {"kl": float(step)})


@pytest.mark.parametrize("outage", ["silent", "broken"])
def test_training_goes_on_and_catches_up(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, outage: str
) -> None:
    clock = Clock()
    tracker = start(server, tmp_path, clock)
    log_steps(tracker, 1, 10, clock, 1.0)
    assert server.steps
    before = len(server.calls)
    server.turn(outage)
    with caplog.at_level(logging.WARNING, logger="bgrpo.runs.mlflow_tracking"):
        log_steps(tracker, 11, 130, clock, 1.0)
    assert 2 <= len(server.calls) - before <= 4, "a store that fails is asked once a minute, not at every step"
    assert len(caplog.records) == 1 and "training goes on" in caplog.text
    server.turn("good")
    log_steps(tracker, 131, 200, clock, 1.0)
    tracker.finish("FINISHED")
    assert sorted(server.steps) == list(range(1, 201)), "nothing is lost and nothing is sent twice"
    assert server.status == "FINISHED"
    assert len(caplog.records) == 1


def test_what_was_never_sent_is_named(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tracker = start(server, tmp_path, clock)
    log_steps(tracker, 1, 5, clock, 10.0)
    server.turn("silent")
    with caplog.at_level(logging.WARNING, logger="bgrpo.runs.mlflow_tracking"):
        log_steps(tracker, 6, 9, clock, 10.0)
        before = len(server.calls)
        (tmp_path / "report.png").write_bytes(b"png")
        (tmp_path / "policy").mkdir()
        for name in ("report.png", "policy"):
            tracker.artifact(tmp_path / name)
        assert len(server.calls) == before, "what waits for a dead store does not wait once per file"
        tracker.finish("FINISHED")
    assert len(server.calls) - before <= 2
    assert caplog.records[-1].getMessage() == (
        f"MLflow at {server.uri} lacks 4 metrics of steps 6 to 9, how the run ended, report.png, policy; everything is "
        "in the run's folder"
    )


def test_a_slow_server_takes_a_small_part_of_the_time(server: Server, tmp_path: Path) -> None:
    clock = Clock()
    tracker = start(server, tmp_path, clock)
    server.delay_s = 0.3
    before, began = len(server.calls), clock()
    for step in range(1, 101):
        clock.skipped += 0.5
        tracker.log(step, {"kl": float(step)} | {f"m{i}": 0.0 for i in range(60)})
    passed = clock() - began
    calls = len(server.calls) - before
    assert calls >= 3
    assert calls * server.delay_s <= 2 * passed / REST, "several batches may go in one turn"
    tracker.finish("FINISHED")
    assert sorted(server.steps) == list(range(1, 101))
