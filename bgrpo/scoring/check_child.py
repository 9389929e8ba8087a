"""The process that does the checks: one request after the other from a socket; it may be killed at any time.

Forked by :mod:`bgrpo.scoring.check_guard`. Every message is one line of JSON. A request is ``[name, content]``, with a
random name. The first one's content is the set-up (target, options, memory limit); that of every other holds attempts,
see :func:`bgrpo.scoring.attempts.to_json`. Each attempt is answered by ``[name, position, outcome, score, detail]``,
sent before the next one is begun, or where the target scores whole groups, after all were scored. The set-up is
answered as if it were one attempt whose outcome is ``ready`` (the detail says whether to send :data:`ITEMS` or
:data:`GROUPS`) or ``refused``.

A check is somebody else's code and may do anything to this process, so whatever is needed after its first call is taken
from other modules before.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError, summary
from bgrpo.scoring import user_functions
from bgrpo.scoring.attempts import Attempt, from_json
from bgrpo.scoring.kept_functions import PREFIX, load_function
from bgrpo.scoring.user_functions import MisreturnedError, as_score, reward_function, takes_groups
from bgrpo.tasks.base import Outcome, checker, import_named, load_task

Judgement = tuple[str, float | None, str]
Score = Callable[[list[Attempt]], list[Judgement]]
TASK_PREFIX = "task:"
READY, REFUSED = "ready", "refused"
ITEMS, GROUPS = "items", "groups"
LONGEST_DETAIL = 1000
"""Characters of a detail; the rest is cut off."""

LOST_CHANNEL_STATUS = os.EX_IOERR

_parse = json.JSONDecoder().decode
_end, _own_pid = os._exit, os.getpid
_receive, _send = socket.socket.recv, socket.socket.sendall


def _load(target: str, options: dict[str, Any]) -> tuple[str, Score]:
    """What to call: ``task:NAME`` is the task's own check, ``module:function`` a user's reward function, ``kept:PATH``
    one that the run keeps, whose digest is an option.

    Returns:
        :data:`ITEMS` where it is to be called with one attempt at a time, :data:`GROUPS` with whole groups.

    Raises:
        UserError: the target cannot be imported.
    """
    if target.startswith(TASK_PREFIX):
        check = checker(load_task(target.removeprefix(TASK_PREFIX), options))
        return ITEMS, lambda attempts: [(_as_outcome(check(each.problem, each.text)), None, "") for each in attempts]
    if target.startswith(PREFIX):
        function = load_function(Path(target.removeprefix(PREFIX)), str(options["digest"]))
    else:
        function = _import_function(target)
    scores = reward_function(function)
    form = GROUPS if takes_groups(function) else ITEMS
    return form, lambda attempts: [_judgement(value) for value in scores(attempts)]


def _import_function(target: str) -> Callable[..., Any]:
    function = import_named(target, f"reward function {target!r}", "'module:function'")
    if not callable(function):
        raise UserError(f"reward function {target!r}: is a {type(function).__name__}, not a function")
    return function


def _as_outcome(value: Any) -> str:
    if not isinstance(value, str) or value not in set(Outcome):
        raise MisreturnedError(f"the task's check returned {type(value).__name__} {value!r:.40}, expected an Outcome")
    return str(value)


def _judgement(value: Any) -> Judgement:
    if value is None:
        return Outcome.UNSCORED, None, ""
    try:
        return Outcome.SCORED, as_score(value), ""
    except MisreturnedError as error:
        return Outcome.ERROR, None, str(error)


def _guarded(score: Score, attempts: list[Attempt]) -> list[Judgement]:
    try:
        return score(attempts)
    except MisreturnedError as error:
        detail = str(error)
    except BaseException as error:  # noqa: BLE001 - a user's function may raise anything, and the answer says what
        detail = _described(error)
    return [(Outcome.ERROR, None, detail)] * len(attempts)


def _described(error: BaseException) -> str:
    try:
        told = summary(error, __file__, user_functions.__file__)
        if isinstance(error, TypeError) and "(/" not in told:  # raised by the call, not in the function
            return f"{told}: it is called as f(prompt, completion), with the columns that further parameters name"
        return told
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
        form, score = _load(setup["target"], setup["options"])
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        told = str(error) if isinstance(error, UserError) else f"{setup['target']!r}: {_described(error)}"
        answer(name, 0, (REFUSED, None, told))
        return
    answer(name, 0, (READY, None, form))
    for line in requests:
        name, content = _parse(line)
        attempts = from_json(content)
        if form == ITEMS:
            for position, attempt in enumerate(attempts):
                answer(name, position, *_guarded(score, [attempt]))
        else:
            for position, judgement in enumerate(_guarded(score, attempts)):
                answer(name, position, judgement)
