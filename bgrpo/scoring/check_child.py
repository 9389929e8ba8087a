"""The process that does the checks: one request after the other from a socket; it may be killed at any time.

Forked by :mod:`bgrpo.scoring.check_guard`. Every message is one line of JSON. A request is ``[name, content]``, with a
random name. The first one's content is the set-up (target, options, memory limit); that of every other is a list of
items, [prompt, completion] each. Each item is answered by ``[name, position, outcome, score, detail]``, sent before the
next one is begun; the set-up as if it were one item whose outcome is ``ready`` or ``refused``.

A check is somebody else's code and may do anything to this process, so whatever is needed after its first call is taken
from other modules before.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from bgrpo.errors import UserError, summary
from bgrpo.scoring.rewards import LARGEST_REWARD
from bgrpo.tasks.base import Outcome, import_named, load_task

Judgement = tuple[str, float | None, str]
Check = Callable[[str, str], Judgement]
TASK_PREFIX = "task:"
READY, REFUSED = "ready", "refused"
LONGEST_DETAIL = 1000
"""Characters of a detail; the rest is cut off."""

LOST_CHANNEL_STATUS = os.EX_IOERR

_parse = json.JSONDecoder().decode
_end, _own_pid = os._exit, os.getpid
_receive, _send = socket.socket.recv, socket.socket.sendall


class MisreturnedError(Exception):
    """A check returned something else than it should; the message says what."""


def as_score(value: Any) -> float:
    """What a reward function returned as a number.

    A number is a bool, or whatever has ``__float__`` or ``__index__``: NumPy's and torch's scalars and 0-d arrays,
    Decimal, Fraction. Text, None, complex numbers and everything with a length are none.

    Raises:
        MisreturnedError: it is no number, not finite, or beyond :data:`LARGEST_REWARD`. Where the value's own methods
            raise, what they do.
    """
    kind = type(value).__name__
    if not _has_length(value) and callable(getattr(type(value), "item", None)):
        value = value.item()  # of a scalar or a 0-d array, which may hold text
    if _has_length(value) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise MisreturnedError(f"the reward function returned {kind}, expected a float")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise MisreturnedError(f"the reward function returned {score}, expected a finite float")
    if abs(score) > LARGEST_REWARD:
        raise MisreturnedError(f"the reward function returned {score:g}, expected at most {LARGEST_REWARD:g} in size")
    return score


def _has_length(value: Any) -> bool:
    try:
        len(value)
    except TypeError:  # of an array without dimensions too
        return False
    return True


def _load_check(target: str, options: dict[str, Any]) -> Check:
    """What to call for each item: ``task:NAME`` is the task's own check, ``module:function`` a user's reward function.

    Raises:
        UserError: the target cannot be imported.
    """
    if target.startswith(TASK_PREFIX):
        task = load_task(target.removeprefix(TASK_PREFIX), options)
        return lambda prompt, completion: (_as_outcome(task.check(prompt, completion)), None, "")
    return _check_by_function(_import_function(target))


def _import_function(target: str) -> Callable[[str, str], Any]:
    function = import_named(target, f"reward function {target!r}", "'module:function'")
    if not callable(function):
        raise UserError(f"reward function {target!r}: is a {type(function).__name__}, not a function")
    return function


def _as_outcome(value: Any) -> str:
    if not isinstance(value, str) or value not in set(Outcome):
        raise MisreturnedError(f"the task's check returned {type(value).__name__} {value!r:.40}, expected an Outcome")
    return str(value)


def _check_by_function(function: Callable[[str, str], Any]) -> Check:
    def check(prompt: str, completion: str) -> Judgement:
        score = as_score(function(prompt, completion))
        return (Outcome.CORRECT if score > 0 else Outcome.WRONG), score, ""

    return check


def _guarded(check: Check, prompt: str, completion: str) -> Judgement:
    try:
        return check(prompt, completion)
    except MisreturnedError as error:
        return Outcome.ERROR, None, str(error)
    except BaseException as error:  # noqa: BLE001 - a user's function may raise anything, and the answer says what
        return Outcome.ERROR, None, _described(error)


def _described(error: BaseException) -> str:
    try:
        return summary(error)
    except BaseException:  # noqa: BLE001 - the message is made by somebody else's code too
        return f"{type(error).__name__}, whose message cannot be read"


def _lines(channel: socket.socket) -> Iterator[str]:
    parts: list[bytes] = []
    while data := _receive(channel, 1 << 16):
        head, newline, rest = data.partition(b"\n")
        parts.append(head)
        if newline:  # one request at a time: nothing follows
            yield b"".join(parts).decode()
            parts = [rest]


def serve(channel: socket.socket) -> None:
    """Answer requests until the other side closes the socket."""
    pid = _own_pid()
    os.register_at_fork(after_in_child=channel.close)

    def answer(name: str, position: int, judgement: Judgement) -> None:
        if _own_pid() != pid:  # the check forked, and returns here twice
            _end(0)
        outcome, score, detail = judgement
        value = "null" if score is None else float.__repr__(score)
        fields = f"[{_quoted(name)}, {position}, {_quoted(outcome)}, {value}, {_quoted(detail[:LONGEST_DETAIL])}]\n"
        try:
            _send(channel, fields.encode())
        except OSError:
            _end(LOST_CHANNEL_STATUS)

    requests = _lines(channel)
    name, setup = _parse(next(requests))
    if setup["memory_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (setup["memory_bytes"], setup["memory_bytes"]))
    try:
        check = _load_check(setup["target"], setup["options"])
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        told = str(error) if isinstance(error, UserError) else f"{setup['target']!r}: {_described(error)}"
        answer(name, 0, (REFUSED, None, told))
        return
    answer(name, 0, (READY, None, ""))
    for line in requests:
        name, items = _parse(line)
        for position, (prompt, completion) in enumerate(items):
            answer(name, position, _guarded(check, prompt, completion))
