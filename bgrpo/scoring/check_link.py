"""The caller's end of one check process, from its start to its end: requests out, numbered answers in."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bgrpo.groups import Verdict
from bgrpo.scoring.check_child import LONGEST_DETAIL, LOST_CHANNEL_STATUS, READY, REFUSED
from bgrpo.scoring.check_output import CheckOutput
from bgrpo.tasks.base import Outcome

LONGEST_ANSWER = 16 * LONGEST_DETAIL  # bytes; more than any answer that the child makes
EXIT_LIMIT_S = 10.0
LAST_WORDS_S = 1.0  # from a closed channel to the report of how the process ended
_OUTCOMES = {READY, REFUSED, *map(str, Outcome)}


class BrokenLinkError(Exception):
    """The process ended, or what it wrote is no answer; the message says which, in one line."""


class CheckLink:
    """A check process and the sockets to it. Whatever is raised here, the process is of no use any more: stop it.

    Its standard input is empty. It ends with its starter, however that ends, and takes with it everything that it
    started, see :mod:`bgrpo.scoring.check_guard`.

    Args:
        output: of what it prints.
    """

    def __init__(self, output: CheckOutput) -> None:
        self._received = b""
        self._channel, their_channel = socket.socketpair()
        self._control, their_control = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        with their_channel, their_control:
            sockets = [their_channel.fileno(), their_control.fileno()]
            printed = output.pipe()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bgrpo.scoring.check_guard", *map(str, sockets)],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    env=environment,
                    pass_fds=sockets,
                    start_new_session=True,
                )
            finally:
                os.close(printed)
        self._poll = select.poll()
        for each in (self._channel, self._control):
            self._poll.register(each, select.POLLIN)

    @property
    def pid(self) -> int:
        """Process id of the outer guard: whoever kills it ends the check too."""
        return self._process.pid

    def ask(self, content: Any, limit_s: float) -> str:
        """Send a request; the name that its answers bear.

        Raises:
            BrokenLinkError: the process has ended, or does not read.
        """
        name = secrets.token_hex(8)
        self._channel.settimeout(limit_s)
        try:
            self._channel.sendall(json.dumps([name, content]).encode() + b"\n")
        except OSError:
            raise BrokenLinkError(f"the check process {self.stop(LAST_WORDS_S)} before the check") from None
        return name

    def answer(self, name: str, position: int, limit_s: float) -> Verdict:
        """The answer to one item of a request, which must be the next one to come.

        Raises:
            TimeoutError: there is none within ``limit_s``, whatever else has come.
            BrokenLinkError: see there.
        """
        line = self._line(time.monotonic() + limit_s)
        try:
            match json.loads(line):
                case [str(of), int(at), str(outcome), float() | None as score, str(detail)] if (
                    (of, at) == (name, position)
                    and outcome in _OUTCOMES
                    and (score is None or math.isfinite(score))
                    and len(detail) <= LONGEST_DETAIL
                ):
                    return Verdict(outcome, score, "".join(c if c.isprintable() else " " for c in detail))
        except (ValueError, RecursionError):
            pass  # told below, like any other line that is no answer
        raise BrokenLinkError("something else than an answer came from the check process: does it write to its socket?")

    def stop(self, wait_s: float = 0.0) -> str:
        """End the process, and what it started, after ``wait_s`` seconds to end by itself; how it ended, in words."""
        if self._process.returncode is not None:
            return "had ended"
        by_itself = self._comes(self._control, wait_s)
        with contextlib.suppress(OSError):  # both guards are gone
            self._control.shutdown(socket.SHUT_WR)
        answers = self._comes(self._control, EXIT_LIMIT_S)
        word = self._control.recv(32) if answers else b""
        self._channel.close()
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_LIMIT_S if answers else 0)
        if self._process.returncode is None:  # a guard is held up: their group is what can be reached
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait(EXIT_LIMIT_S)
        return _how_it_ended(int(word) if word else code or -signal.SIGKILL) if by_itself else "was killed"

    def _line(self, deadline: float) -> bytes:
        """The next line. What comes is bounded, so bytes that keep coming do not put the deadline off."""
        while b"\n" not in self._received:
            if len(self._received) > LONGEST_ANSWER:
                raise BrokenLinkError(f"more than {LONGEST_ANSWER:,} bytes came from the check process, and no answer")
            ready = self._poll.poll(1000 * max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            data = b""
            if any(descriptor == self._channel.fileno() for descriptor, _ in ready):
                with contextlib.suppress(ConnectionError):
                    data = self._channel.recv(LONGEST_ANSWER)
            if not data:
                raise BrokenLinkError(f"the check process {self.stop(LAST_WORDS_S)}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    @staticmethod
    def _comes(connection: socket.socket, wait_s: float) -> bool:
        """Whether something, or the end, comes within ``wait_s`` seconds."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(1000 * wait_s))


def _how_it_ended(code: int) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-code, f'signal {-code}')}"
    if code == LOST_CHANNEL_STATUS:
        return f"exited with status {code}: did the function close its socket?"
    return f"exited with status {code}"
