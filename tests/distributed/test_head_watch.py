"""A head that stops answering is told of once, and so is its return."""

from __future__ import annotations

import socket
import time

import pytest

from bgrpo.distributed import head_watch
from bgrpo.distributed.head_watch import BACK, LOST


def wait_for_lines(lines: list[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(lines) < count:
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)


def test_the_loss_of_the_head_and_its_return_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "POLL_S", 0.01)
    lines: list[str] = []
    head = socket.create_server(("127.0.0.1", 0))
    host, port = head.getsockname()
    address = f"{host}:{port}"
    with head_watch.head_watch(address, lines.append):
        for _ in range(5):
            head.accept()[0].close()
        assert lines == []
        head.close()
        wait_for_lines(lines, 1)
        with socket.create_server((host, port)) as again:
            for _ in range(5):
                again.accept()[0].close()
            wait_for_lines(lines, 2)
    assert lines == [LOST.format(address=address), BACK.format(address=address)]
