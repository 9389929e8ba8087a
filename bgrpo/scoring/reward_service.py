"""A reward model behind HTTP on this machine: JSON in, scores out.

``POST /`` with ``{"prompts": […], "completions": […], …}`` and a bearer token answers ``{"scores": [number or null],
"errors": [text or null]}``. ``GET /health`` says that the service is there. Anything else is ``{"error": "…"}``.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from bgrpo.errors import UserError
from bgrpo.scoring.scored_text import Item, Score, is_text, shorten

TOKEN_VARIABLE = "BGRPO_REWARD_TOKEN"
MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_COMPLETIONS = 16_384
MAX_WAITING = 32
READ_TIMEOUT_S = 30.0


class Scorer(Protocol):
    """What the service asks, as :class:`bgrpo.scoring.reward_model.RewardModel`."""

    path: str

    def score(self, items: list[Item]) -> list[Score]:
        """A score for every item, in order."""
        ...


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def service_token() -> tuple[str, bool]:
    """The bearer token, and whether it was generated because the environment has none.

    Raises:
        UserError: the one of the environment cannot stand in a header.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if not given:
        return secrets.token_urlsafe(32), True
    if not (given.isascii() and given.isprintable()) or " " in given:
        raise UserError(f"{TOKEN_VARIABLE}: expected printable ASCII without blanks")
    return given, False


class RewardService:
    """Answers on 127.0.0.1, one request scored at a time.

    Args:
        scorer: scores the completions.
        token: that every request must carry.
        port: 0 for a free one.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, scorer: Scorer, token: str, port: int = 0) -> None:
        places = threading.BoundedSemaphore(MAX_WAITING)
        handler = type("Handler", (_Handler,), {"scorer": scorer, "token": token, "busy": threading.Lock()})
        try:
            self._server = _Server(("127.0.0.1", port), handler)
        except OSError as error:
            raise UserError(f"--port {port}: cannot be opened ({error.strerror}); give another, or 0") from error
        self._server.places = places
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve(self) -> None:
        """Answer until :meth:`stop`, or until an exception such as KeyboardInterrupt."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End :meth:`serve`, from another thread."""
        self._server.shutdown()


class _Server(ThreadingHTTPServer):
    """At most ``MAX_WAITING`` connections have a thread; further ones wait to be accepted."""

    daemon_threads = True
    block_on_close = False
    places: threading.BoundedSemaphore

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.acquire(timeout=READ_TIMEOUT_S):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was too slow, is no event."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    scorer: Scorer
    token: str
    busy: threading.Lock

    def setup(self) -> None:
        """A request that has not come completely in time loses its connection, however slowly it drips."""
        super().setup()
        self._late = threading.Timer(READ_TIMEOUT_S, _disconnect, [self.connection])
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """The clock stops with the request."""
        self._late.cancel()
        super().finish()

    def do_GET(self) -> None:
        """Is the service there?"""
        if self.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok", "model": self.scorer.path})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "POST / scores, GET /health answers when the service is up"})

    def do_POST(self) -> None:
        """Score completions."""
        try:
            items = _items(self._body())
            with self.busy:
                scores = self.scorer.score(items)
        except _Refused as refused:
            self._answer(refused.status, {"error": str(refused)})
        except UserError as error:  # the chat template does not end
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except (RuntimeError, MemoryError) as error:  # lack of memory, for example: the client may try again
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {shorten(error)}"})
        else:
            values, failures = [score.value for score in scores], [score.failure or None for score in scores]
            self._answer(HTTPStatus.OK, {"scores": values, "errors": failures})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses is told as JSON too."""
        self._answer(HTTPStatus(code), {"error": shorten(message or HTTPStatus(code).phrase)})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a request line may hold what should not be kept."""

    def _body(self) -> Any:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {self.token}".encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, "the header Authorization: Bearer TOKEN is missing or wrong")
        if self.path not in ("/", "/score"):
            raise _Refused(HTTPStatus.NOT_FOUND, "POST / scores")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the header Content-Length is missing")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BODY_BYTES:,} bytes; send fewer"
            )
        body = self.rfile.read(int(length))
        self._late.cancel()
        if len(body) != int(length):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body is shorter than Content-Length says")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON ({shorten(error, 80)})") from None

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


def _disconnect(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)


def _items(body: Any) -> list[Item]:
    """The completions of a request; columns beside prompts and completions are the other fields of the problems.

    Raises:
        _Refused: it has another form.
    """

    def refuse(message: str) -> _Refused:
        return _Refused(HTTPStatus.BAD_REQUEST, message)

    if not isinstance(body, dict):
        raise refuse('expected an object {"prompts": [...], "completions": [...]}')
    for name in ("prompts", "completions"):
        if not isinstance(body.get(name), list):
            raise refuse(f"{name}: expected a list of texts or of chat messages")
        for position, value in enumerate(body[name]):
            if not is_text(value):
                raise refuse(f"{name}[{position}]: expected a text, or messages with role and content")
    count = len(body["completions"])
    if count > MAX_COMPLETIONS:
        raise refuse(f"completions: {count:,} of them; send at most {MAX_COMPLETIONS:,}")
    for name, column in body.items():
        if not isinstance(column, list) or len(column) != count:
            length = f"{len(column)} values" if isinstance(column, list) else f"a {type(column).__name__}"
            raise refuse(f"{shorten(name, 40)}: has {length}; expected a list of {count}, one for each completion")
    columns = {name: column for name, column in body.items() if name not in ("prompts", "completions")}
    return [
        Item(prompt, completion, {name: column[row] for name, column in columns.items()})
        for row, (prompt, completion) in enumerate(zip(body["prompts"], body["completions"], strict=True))
    ]
