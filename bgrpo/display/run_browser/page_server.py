"""Serves the files of one page on 127.0.0.1, to whom was given its address: a path that cannot be guessed."""

from __future__ import annotations

import hmac
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bgrpo.display.run_browser.run_page import PAGE, RunPage
from bgrpo.errors import UserError

HOST = "127.0.0.1"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
REQUEST_S = 10.0  # longest wait for a request's bytes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Read-only: GET and HEAD of the page's own files below the token, asked for under the server's own name.

    Attributes:
        url: of the page; holds the token.
    """

    daemon_threads = True

    def __init__(self, page: RunPage, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        token = secrets.token_urlsafe(24)
        self.page = page
        self.prefix = f"/{token}/"
        self.hosts = (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")
        self.url = f"http://{HOST}:{self.server_port}{self.prefix}"

    def file_of(self, path: str) -> str | None:
        """The name of the file that a request's path asks for; None when there is none."""
        size = len(self.prefix)
        if not hmac.compare_digest(path[:size].encode("utf-8", "replace"), self.prefix.encode()):
            return None
        name = path[size:] or PAGE
        return name if name in self.page.files else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no news; anything else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S
    server: PageServer
    server_version, sys_version = "bgrpo", ""

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in ([host] for host in self.server.hosts):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "asked for under another name")  # DNS rebinding
            return
        name = self.server.file_of(self.path)
        if name is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such file")
            return
        try:
            content = (self.server.page.folder / name).read_bytes()
        except OSError:
            self.send_error(HTTPStatus.GONE, "the page was removed or written anew: load it again")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{TYPES[name[name.rindex('.') :]]}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        for header, value in HEADERS.items():
            self.send_header(header, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is logged: the path holds the token."""


@contextmanager
def page_server(page: RunPage, port: int = 0) -> Iterator[PageServer]:
    """A server for the block to run, by ``serve_forever``.

    Args:
        page: what to serve.
        port: to listen on; 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """
    try:
        server = PageServer(page, port)
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be listened on ({error.strerror}); leave it out for a free one"
        ) from error
    with server:
        yield server
