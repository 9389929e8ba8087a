"""Checks with a real time limit: they run in a child process that is killed, not interrupted, when one takes too long.

Neither a check that never returns, nor one that crashes the interpreter, nor one that prints to standard output can
disturb the caller: the item gets the outcome ``timeout`` or ``error`` and the others go on. No Ray here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.tasks.base import Outcome

START_LIMIT_S = 120.0  # importing the target, for example a reward model's libraries
EXIT_LIMIT_S = 10.0
CRASHES_PER_ITEM = 2  # the first is forgiven: somebody else may have killed the child


class _Channel:
    """Lines of JSON over a socket; every send and receive ends at a deadline (``time.monotonic``)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def send(self, message: Any, deadline: float) -> None:
        self._connection.settimeout(max(1e-3, deadline - time.monotonic()))
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline: float) -> Any:
        """The next message; TimeoutError past the deadline, ConnectionError when the other side is gone."""
        while b"\n" not in self._received:
            self._connection.settimeout(max(1e-3, deadline - time.monotonic()))
            data = self._connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the other side closed the connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        self._connection.close()


class CheckProcess:
    """One child process that checks completions one by one.

    The child imports the target and nothing else: no torch unless the target needs it. It is started at construction,
    so that a target that cannot be imported is refused at once, and again after each kill. Its standard output goes to
    standard error, its standard input is empty, and it ends with its parent (at the latest when the check at hand has
    taken twice its limit).

    Args:
        target: ``"task:NAME"`` for a task's own check (NAME as in :func:`bgrpo.tasks.base.load_task`), or
            ``"module:function"`` for a user's reward function ``f(prompt, completion) -> float``: a score above zero
            counts as ``correct``, else ``wrong``, and the score itself is kept. An exception, a value that is no real
            number, or one that is not finite, is an ``error``. Functions are taken to be deterministic.
        options: arguments of the task.
        timeout_s: limit of one check in seconds.
        memory_bytes: limit of the child's data (RLIMIT_DATA; past it, MemoryError or an abort); None for no limit.

    Raises:
        UserError: the target cannot be imported.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any] | None = None,
        timeout_s: float = 5.0,
        memory_bytes: int | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._setup = {
            "target": target,
            "options": options or {},
            "timeout_s": timeout_s,
            "memory_bytes": memory_bytes,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._process.pid if self._process is not None else None

    def run(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Check (prompt, completion) pairs, each distinct pair once; results in the order of ``items``."""
        distinct = list(dict.fromkeys((prompt, completion) for prompt, completion in items))
        results: list[Verdict] = []
        crashes: Counter[int] = Counter()  # by position in ``distinct``
        while len(results) < len(distinct):
            fault = self._run_until_fault(distinct, results)
            if fault is None:
                continue
            if fault.outcome == Outcome.ERROR:
                crashes[len(results)] += 1
                if crashes[len(results)] < CRASHES_PER_ITEM:
                    continue
            results.append(fault)
        by_item = dict(zip(distinct, results, strict=True))
        return [by_item[prompt, completion] for prompt, completion in items]

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_until_fault(self, items: list[tuple[str, str]], results: list[Verdict]) -> Verdict | None:
        """Append the results of the items that have none yet; on a fault, end the child and return the culprit's."""
        if self._process is None:
            self._start()
        try:
            self._channel.send(items[len(results) :], time.monotonic() + self._timeout_s)
        except (ConnectionError, TimeoutError):  # it ended, or was stopped, while it had nothing to do
            return Verdict(Outcome.ERROR, detail=f"the check process {self._stop()} before the check")
        try:
            while len(results) < len(items):
                outcome, score, detail = self._channel.receive(time.monotonic() + self._timeout_s)
                results.append(Verdict(outcome, score, detail))
        except TimeoutError:
            self._stop()
            return Verdict(Outcome.TIMEOUT, detail=f"the check took longer than {self._timeout_s:g} s")
        except ConnectionError:
            return Verdict(Outcome.ERROR, detail=f"the check process {self._stop(wait_s=1.0)}")
        return None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bgrpo.scoring.check_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = _Channel(ours)
        deadline = time.monotonic() + START_LIMIT_S
        try:
            self._channel.send(self._setup, deadline)
            reply = self._channel.receive(deadline)
        except (ConnectionError, TimeoutError) as error:
            raise UserError(f"{self._setup['target']!r}: its process {self._stop(wait_s=1.0)} on import") from error
        if "refused" in reply:
            self._stop()
            raise UserError(reply["refused"])

    def _stop(self, wait_s: float = 0.0) -> str:
        """Kill the child (after ``wait_s`` seconds to end by itself) and say how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "was not running"
        self._channel.close()
        try:
            status = process.wait(wait_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(EXIT_LIMIT_S)
            return "was killed"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"
