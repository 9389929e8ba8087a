"""``RAY_ADDRESS``: what is no address, and where no head answers, is said in one line and in bounded time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from ray.exceptions import AuthenticationError

from bgrpo.cli.app import main
from bgrpo.distributed.session.cluster_address import check_head, cluster_address
from bgrpo.distributed.session.ray_session import ray_session
from bgrpo.errors import UserError


@pytest.mark.parametrize("value", [None, "", "  ", "local"])
def test_no_address(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() is None


@pytest.mark.parametrize("value", ["10.0.0.1:6379", "head.example:1", "[::1]:65535", "auto", " localhost:6379 "])
def test_addresses(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == value.strip()


@pytest.mark.parametrize(
    "value",
    [
        "nonsense", "10.0.0.1", "10.0.0.1:", ":6379", "h:0", "h:65536", "h:99999999999999999999", "h:-1", "h:63x",
        "ray://h:10001", "http://h:8265", "h:1,h:2", "a b:6379", "h:6379/x", "[::1:6379", "\n:1", "h\n:6379", "AUTO",
        "h:٣", "é:1",
    ],
)  # fmt: skip
def test_what_is_no_address(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"^RAY_ADDRESS='.*expected HOST:PORT") as caught, ray_session([]):
        pytest.fail("there is no Ray")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["train", "pretrain", "sweep"])
def test_what_is_no_address_is_told_before_anything_else_is_looked_at(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    wrong = [] if command == "sweep" else ["task.name=no:Task"]
    assert main([command, f"run.dir={tmp_path}", *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: RAY_ADDRESS='nonsense': ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@contextmanager
def silent() -> Iterator[int]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def nobody() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class _Page(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def page() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class _Head(grpc.GenericRpcHandler):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not details.method.endswith("/CheckAlive") or self._code is grpc.StatusCode.UNIMPLEMENTED:
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._code is not grpc.StatusCode.OK:
                context.abort(self._code, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def head(code: grpc.StatusCode) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Head(code)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize(
    ("place", "words"), [(silent, "deadline exceeded"), (nobody, "unavailable"), (page, "unavailable")]
)
def test_no_head_answers(place: object, words: str) -> None:
    with place() as port, pytest.raises(ConnectionError, match=words):  # type: ignore[operator]
        check_head(f"127.0.0.1:{port}", timeout_s=2.0)


def test_answers_of_heads_and_of_others() -> None:
    with head(grpc.StatusCode.OK) as port:
        check_head(f"127.0.0.1:{port}")
    with head(grpc.StatusCode.UNAUTHENTICATED) as port, pytest.raises(AuthenticationError):
        check_head(f"127.0.0.1:{port}")
    with head(grpc.StatusCode.UNIMPLEMENTED) as port, pytest.raises(ConnectionError, match="not the head"):
        check_head(f"127.0.0.1:{port}")


def test_the_user_is_told_which_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with nobody() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with (
            pytest.raises(UserError, match=f"^no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}: "),
            ray_session([]),
        ):
            pytest.fail("there is no Ray")
