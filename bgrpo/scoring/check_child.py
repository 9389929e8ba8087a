"""The process that does the checks: one request after the other from a socket; it may be killed at any time.

Started by :class:`bgrpo.scoring.check_process.CheckProcess` as ``python -m bgrpo.scoring.check_child FD``. Every
message is one line of JSON. First comes the set-up (target, options, limits), answered by ``{"ready": true}`` or
``{"refused": why}``; then lists of [prompt, completion], each answered by one ``[outcome, score, detail]`` per item,
in order, each sent before the next check starts. The process ends when the socket closes.
"""

from __future__ import annotations

import json
import math
import numbers
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from bgrpo.errors import UserError, summary
from bgrpo.tasks.base import Outcome, import_named, load_task

Judgement = tuple[str, float | None, str]
Check = Callable[[str, str], Judgement]
TASK_PREFIX = "task:"


def load_check(target: str, options: dict[str, Any]) -> Check:
    """What to call for each item: ``task:NAME`` is the task's own check, ``module:function`` a user's reward function.

    Raises:
        UserError: the target cannot be imported.
    """
    if target.startswith(TASK_PREFIX):
        task = load_task(target.removeprefix(TASK_PREFIX), options)
        return lambda prompt, completion: (str(task.check(prompt, completion)), None, "")
    return _check_by_function(_import_function(target))


def _import_function(target: str) -> Callable[[str, str], Any]:
    function = import_named(target, f"reward function {target!r}", "'module:function'")
    if not callable(function):
        raise UserError(f"reward function {target!r}: is a {type(function).__name__}, not a function")
    return function


def _check_by_function(function: Callable[[str, str], Any]) -> Check:
    def check(prompt: str, completion: str) -> Judgement:
        value = function(prompt, completion)
        if not isinstance(value, numbers.Real):
            return Outcome.ERROR, None, f"the reward function returned {type(value).__name__}, expected a float"
        score = float(value)
        if not math.isfinite(score):
            return Outcome.ERROR, None, f"the reward function returned {score}, expected a finite float"
        return (Outcome.CORRECT if score > 0 else Outcome.WRONG), score, ""

    return check


def _guarded(check: Check, prompt: str, completion: str, limit_s: float) -> Judgement:
    # The parent kills a check that takes too long. The alarm does it if the parent is gone: its default action ends
    # the process even while native code runs.
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return check(prompt, completion)
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything, and the answer says what
        return Outcome.ERROR, None, summary(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(channel: socket.socket) -> None:
    def send(message: Any) -> None:
        channel.sendall(json.dumps(message).encode() + b"\n")

    requests = channel.makefile("rb")
    setup = json.loads(requests.readline())
    if setup["memory_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (setup["memory_bytes"], setup["memory_bytes"]))
    try:
        check = load_check(setup["target"], setup["options"])
    except Exception as error:  # noqa: BLE001 - importing a user's module may raise anything, and the answer says what
        send({"refused": str(error) if isinstance(error, UserError) else f"{setup['target']!r}: {summary(error)}"})
        return
    send({"ready": True})
    limit_s = 2 * setup["timeout_s"] + 1
    for line in requests:
        for prompt, completion in json.loads(line):
            send(_guarded(check, prompt, completion, limit_s))


if __name__ == "__main__":
    inherited = socket.socket(fileno=int(sys.argv[1]))
    inherited.set_inheritable(False)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        _serve(inherited)
    except ConnectionError:  # the parent closed the socket while an answer was on its way
        sys.exit(0)
