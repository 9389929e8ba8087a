"""The reward service and its client: what they say to each other, and servers that misbehave in every way."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import write_model

from bgrpo.errors import UserError
from bgrpo.scoring import reward_server, reward_service
from bgrpo.scoring.reward_model import RewardModel
from bgrpo.scoring.reward_server import RewardServer
from bgrpo.scoring.reward_service import TOKEN_VARIABLE, RewardService, service_token
from bgrpo.scoring.scored_text import Item, Score

TOKEN = "secret-token-1234"
ITEMS = [Item("p", text, {"answer": text.upper()}, group) for group, text in enumerate("abc")]


class Lengths:
    """Scores a completion by its length; fails, does not apply, or breaks where it is told to."""

    path = "lengths"

    def score(self, items: list[Item]) -> list[Score]:
        if any(item.completion == "break" for item in items):
            raise RuntimeError("out of memory")
        special = {"none": Score(), "fail": Score(failure="no score")}
        return [special.get(str(item.completion), Score(float(len(item.completion)))) for item in items]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[RewardService]:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(reward_server, "FIRST_PAUSE_S", 0.01)
    running = RewardService(Lengths(), TOKEN)
    thread = threading.Thread(target=running.serve)
    thread.start()
    yield running
    running.stop()
    thread.join()


def test_scores_failures_and_what_does_not_apply_come_back(service: RewardService) -> None:
    items = [Item("p", text) for text in ("abc", "none", "fail")]
    value, absent, failed = RewardServer(service.url, token_variable=TOKEN_VARIABLE).score(items)
    assert value == Score(3.0) and absent == Score()
    assert failed.value is None and failed.failure.endswith("no score")


def test_a_model_behind_the_service_scores_as_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RewardModel(str(write_model(tmp_path / "m")))
    items = [
        Item([{"role": "user", "content": "w1"}], f"w{number}", {"n": number}, number // 4) for number in range(20)
    ]
    running = RewardService(model, TOKEN)
    thread = threading.Thread(target=running.serve)
    thread.start()
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    try:
        assert RewardServer(running.url, batch=7, token_variable=TOKEN_VARIABLE).score(items) == model.score(items)
    finally:
        running.stop()
        thread.join()


def test_a_model_that_breaks_is_asked_again_and_then_told(service: RewardService) -> None:
    server = RewardServer(service.url, retries=2, token_variable=TOKEN_VARIABLE)
    good, bad = server.score([Item("p", "abc", {}, 0)]) + server.score([Item("p", "break", {}, 1)])
    assert good.value == 3.0 and "RuntimeError: out of memory (after 3 attempts)" in bad.failure


def request(service: RewardService, body: bytes, path: str = "/", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", int(service.url.rpartition(":")[2]), timeout=240)
    sent = {"Authorization": f"Bearer {TOKEN}", **headers}
    connection.request("POST", path, body, {name: value for name, value in sent.items() if value})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


GOOD = {"prompts": ["p"], "completions": ["c"]}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "expected an object"),
        ({"completions": ["c"]}, 400, "prompts: expected a list"),
        ({"prompts": ["p"], "completions": "c"}, 400, "completions: expected a list"),
        ({"prompts": ["p"], "completions": [3]}, 400, "completions[0]: expected a text"),
        ({"prompts": [[{"role": "user"}]], "completions": ["c"]}, 400, "prompts[0]: expected a text"),
        ({"prompts": ["p", "q"], "completions": ["c"]}, 400, "prompts: has 2 values; expected a list of 1"),
        ({**GOOD, "answer": ["a", "b"]}, 400, "answer: has 2 values"),
        ({**GOOD, "answer": 3}, 400, "answer: has a int"),
        ({"prompts": ["p"] * 20_000, "completions": ["c"] * 20_000}, 400, "at most 16,384"),
    ],
)
def test_a_bad_request_is_one_clear_error(service: RewardService, body: Any, status: int, told: str) -> None:
    found, answer = request(service, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found == status and told in answer["error"] and set(answer) == {"error"}
    assert request(service, json.dumps(GOOD).encode()) == (200, {"scores": [1.0], "errors": [None]})


def test_tokens_paths_sizes_and_methods_are_checked(service: RewardService) -> None:
    good = json.dumps(GOOD).encode()
    for given in ("", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xff"):
        assert request(service, good, Authorization=given)[0] == 401
    assert request(service, good, "/other")[0] == 404
    assert request(service, good, **{"Content-Length": str(10**10)})[0] == 413
    assert request(service, good, **{"Content-Length": "x"})[0] == 411
    connection = http.client.HTTPConnection("127.0.0.1", int(service.url.rpartition(":")[2]), timeout=240)
    for method, path, status in (("GET", "/health", 200), ("GET", "/", 404), ("PUT", "/", 501)):
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == status and isinstance(json.loads(answer.read()), dict)


def test_a_client_that_drips_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock does not start again with every byte."""
    monkeypatch.setattr(reward_service, "READ_TIMEOUT_S", 0.5)
    running = RewardService(Lengths(), TOKEN)
    thread = threading.Thread(target=running.serve)
    thread.start()
    try:
        port = int(running.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=240) as client, pytest.raises(ConnectionError):
            for _ in range(3000):
                client.sendall(b"P")
                time.sleep(0.01)
    finally:
        running.stop()
        thread.join()


def test_the_token_comes_from_the_environment_or_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert service_token() == (TOKEN, False)
    monkeypatch.setenv(TOKEN_VARIABLE, "a b")
    with pytest.raises(UserError, match=TOKEN_VARIABLE):
        service_token()
    monkeypatch.delenv(TOKEN_VARIABLE)
    (first, made), (second, _) = service_token(), service_token()
    assert made and first != second and len(first) > 30


@contextmanager
def misbehaving(answer: Callable[[socket.socket, int], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request, then does what ``answer(connection, number)`` does; yields address, requests."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                read = b""
                while b"\r\n\r\n" not in read:
                    read += connection.recv(65536)
                head, _, body = read.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                while len(body) < length:
                    body += connection.recv(65536)
                requests.append(head + b"\r\n\r\n" + body)
                try:
                    answer(connection, len(requests))
                except OSError:  # the client has hung up, as it should
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1?key=hidden", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(body: Any, status: str = "200 OK", *headers: str) -> Callable[[socket.socket, int], None]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers])
    return lambda connection, number: connection.sendall(head.encode() + b"\r\n\r\n" + content)


def drip(connection: socket.socket, number: int) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b" " * 10000:
        connection.sendall(bytes([byte]))
        time.sleep(0.01)


def hang(connection: socket.socket, number: int) -> None:
    connection.settimeout(60)
    connection.recv(1)  # until the client hangs up


def early(connection: socket.socket, number: int) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"scores": [1')


def flood(connection: socket.socket, number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
    for _ in range(50):
        connection.sendall(b"[" * 1_000_000)


def bare(content: bytes) -> Callable[[socket.socket, int], None]:
    return lambda connection, number: connection.sendall(content)


ALWAYS = {  # what the server does: (behaviour, what the failure says, requests)
    "hangs": (hang, "no answer within 1 s", 1),
    "drips": (drip, "no answer within 1 s", 1),
    "closes early": (early, "after 3 attempts", 3),
    "closes at once": (lambda connection, number: None, "after 3 attempts", 3),
    "speaks something else": (bare(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "after 3 attempts", 3),
    "has endless headers": (bare(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"), "after 3 attempts", 3),
    "500": (reply({"error": f"broken {TOKEN}"}, "500 No"), "status 500: broken [token] (after 3 attempts)", 3),
    "503, html": (reply(b"<html>\n\x00busy</html>", "503 No"), "status 503: <html> ?busy</html>", 3),
    "429": (reply({}, "429 Slow", "Retry-After: 0"), "status 429", 3),
    "429 for an hour": (reply({}, "429 Slow", "Retry-After: 3600"), "no answer within 1 s", 1),
    "401": (reply({"error": f"not {TOKEN}"}, "401 No"), "status 401: not [token]", 1),
    "404": (reply(b"", "404 No"), "status 404: no text", 1),
    "redirects": (reply(b"", "302 Found", "Location: http://localhost:9/x"), "a redirect, which is not followed", 1),
    "garbage": (reply(b"\xff\xfe\x00garbage"), "not JSON", 1),
    "gzip": (reply(b"\x1f\x8b" + b"\x00" * 50, "200 OK", "Content-Encoding: gzip"), "not JSON", 1),
    "deep": (reply(b"[" * 60_000), "not JSON", 1),
    "50 MB": (flood, "the answer has more than", 1),
    "a list": (reply([1, 2, 3]), 'expected {"scores": [...]}', 1),
    "no scores": (reply({"rewards": [1, 2, 3]}), 'expected {"scores": [...]}', 1),
    "too few": (reply({"scores": [1, 2]}), "2 scores for 3 completions", 1),
    "too many": (reply({"scores": [1, 2, 3, 4]}), "4 scores for 3 completions", 1),
    "nested": (reply({"scores": [[1], [2], [3]]}), "not a number", 1),
    "true": (reply({"scores": [True, True, True]}), "not a number", 1),
    "texts": (reply({"scores": ["1", "2", "3"]}), "not a number", 1),
    "NaN": (reply(b'{"scores": [NaN, NaN, NaN]}'), "the score is nan", 1),
    "infinite": (reply(b'{"scores": [1e999, -Infinity, 1' + b"0" * 400 + b"]}"), "not a finite number", 1),
    "wrong errors": (reply({"scores": [1, 2, 3], "errors": ["x"]}), "errors: expected a list of 3", 1),
    "errors": (reply({"scores": [1, 2, 3], "errors": ["x" * 9000, f"{TOKEN}\nb", "c"]}), "reward server", 1),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_a_server_that_misbehaves_gives_failures_and_no_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, told, attempts = ALWAYS[name]
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(reward_server, "FIRST_PAUSE_S", 0.01)
    timeout_s = 1.0 if "within 1 s" in told else 60.0
    with misbehaving(behaviour) as (url, requests):
        scores = RewardServer(url, retries=2, timeout_s=timeout_s, token_variable=TOKEN_VARIABLE).score(ITEMS)
    assert len(requests) == attempts
    assert [score.value for score in scores] == [None] * 3
    assert told in scores[0].failure
    for score in scores:
        assert 0 < len(score.failure) < 300 and score.failure.isprintable()
        assert TOKEN not in score.failure and "hidden" not in score.failure


def test_nobody_listening_is_a_failure_after_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server, "FIRST_PAUSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (score,) = RewardServer(f"http://127.0.0.1:{port}", retries=1).score(ITEMS[:1])
    assert "after 2 attempts" in score.failure and str(port) in score.failure


@pytest.mark.parametrize("first", [early, reply({}, "503 No"), reply({}, "429 No", "Retry-After: 0"), flood])
def test_trouble_that_passes_costs_only_time(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server, "FIRST_PAUSE_S", 0.01)
    good = reply({"scores": [1, None, -2.5]})
    with misbehaving(lambda connection, number: (first if number == 1 else good)(connection, number)) as (
        url,
        requests,
    ):
        scores = RewardServer(url).score(ITEMS)
    assert first is flood or (scores == [Score(1.0), Score(), Score(-2.5)] and len(requests) == 2)


def test_requests_hold_whole_groups_and_the_columns() -> None:
    sizes = [3, 2, 6, 1, 1]
    items = [Item("p", "c", {"answer": group}, group) for group, size in enumerate(sizes) for _ in range(size)]

    def answer(connection: socket.socket, number: int) -> None:
        count = len(json.loads(requests[-1].partition(b"\r\n\r\n")[2])["completions"])
        reply({"scores": [number] * count})(connection, number)

    with misbehaving(answer) as (url, requests):
        scores = RewardServer(url, batch=5).score(items)
    bodies = [json.loads(sent.partition(b"\r\n\r\n")[2]) for sent in requests]
    assert [body["answer"] for body in bodies] == [[0, 0, 0, 1, 1], [2] * 6, [3, 4]]
    assert [body["groups"] for body in bodies] == [[0, 0, 0, 1, 1], [0] * 6, [0, 1]]
    assert [score.value for score in scores] == [1] * 5 + [2] * 6 + [3] * 2
    assert b"authorization" not in requests[0].lower()


def test_the_token_is_sent_as_a_header_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    with misbehaving(reply({"scores": [1, 2, 3]})) as (url, requests):
        server = RewardServer(url, token_variable="MY_TOKEN")
        server.score(ITEMS)
    assert requests[0].count(TOKEN.encode()) == 1 and f"Authorization: Bearer {TOKEN}".encode() in requests[0]


@pytest.mark.parametrize(
    "columns", [{"prompts": 1}, {"groups": 1}, {"x": math.nan}, {"x": {1, 2}}, {"completions": None}]
)
def test_columns_that_cannot_be_sent_are_the_users_to_mend(columns: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="column"):
        RewardServer("http://127.0.0.1:1").score([Item("p", "c", columns)])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": "ftp://host/"}, "expected http"),
        ({"url": "file:///etc/passwd"}, "expected http"),
        ({"url": "127.0.0.1:80"}, "expected http"),
        ({"url": f"http://me:{TOKEN}@host/"}, "without user"),
        ({"url": "http://[::1/"}, "expected http"),
        ({"url": "http://host:99999/"}, "expected http"),
        ({"batch": 0}, "batch >= 1"),
        ({"retries": -1}, "retries >= 0"),
        ({"timeout_s": math.inf}, "timeout_s > 0"),
        ({"timeout_s": math.nan}, "timeout_s > 0"),
        ({"token_variable": "BGRPO_NOT_SET"}, "BGRPO_NOT_SET is not set"),
    ],
)
def test_wrong_arguments_are_refused_and_told_without_secrets(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        RewardServer(**{"url": "http://host/", **arguments})
    assert TOKEN not in str(error.value)


def test_the_command_serves_tells_its_token_once_and_ends_on_interrupt(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    command = [sys.executable, "-m", "bgrpo.cli.app", "reward-model", "--serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        variable, _, token = process.stderr.readline().strip().partition("=")
        assert variable == TOKEN_VARIABLE and len(token) > 30
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN_VARIABLE, token)
            (score,) = RewardServer(url, token_variable=TOKEN_VARIABLE).score([Item("w1", "w2")])
        process.send_signal(signal.SIGINT)
        rest, out = process.stderr.read(), process.stdout.read() if process.stdout else ""
    assert score == RewardModel(str(folder)).score([Item("w1", "w2")])[0]
    assert process.returncode == 0 and "Traceback" not in rest and token not in rest + out
