"""A head that stops answering is told of once, and so is its return; what fails with it does not hide that."""

from __future__ import annotations

import socket
import time

import pytest
from ray.exceptions import ActorUnavailableError

from bgrpo.distributed.session import head_watch
from bgrpo.distributed.session.head_watch import BACK, ENDED, LOST
from bgrpo.errors import RunError, UserError


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


def fail_under_watch(error: Exception, loses_head: bool) -> tuple[str, Exception]:
    """The head's address, and what becomes of an error in the block."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        host, port = head.getsockname()
        address = f"{host}:{port}"
        with (
            pytest.raises(type(error) if not loses_head else RunError) as caught,
            head_watch.head_watch(address, print),
        ):
            if loses_head:
                head.close()
            raise error
    return address, caught.value


@pytest.mark.parametrize("error", [RunError("learner 0 says Traceback"), ActorUnavailableError("gone", None)])
def test_what_fails_when_the_head_is_lost_is_a_consequence(error: Exception) -> None:
    address, told = fail_under_watch(error, loses_head=True)
    assert str(told) == ENDED.format(address=address)
    assert told.__cause__ is error


@pytest.mark.parametrize("error", [RunError("learner 0 was killed"), ActorUnavailableError("gone", None)])
def test_what_fails_while_the_head_answers_is_told_as_it_is(error: Exception) -> None:
    assert fail_under_watch(error, loses_head=False)[1] is error


def test_an_error_of_the_user_is_told_as_it_is() -> None:
    with pytest.raises(UserError, match="reward"), head_watch.head_watch("127.0.0.1:1", print):
        raise UserError("unknown reward")
