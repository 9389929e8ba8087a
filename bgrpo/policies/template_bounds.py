"""Whether a chat template ends, tried in a process that can be bounded, before anything renders with it.

A template is a program of somebody else. Jinja's sandbox keeps it from files and from Python's insides, but not from
loops of days, or texts of terabytes. One operation on large numbers cannot be interrupted within a process.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bgrpo.errors import UserError

_TOO_MUCH_MEMORY, _TOO_LONG, _ODD_END = 81, 82, 83  # exit statuses that nothing else gives
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """What rendering chats may take.

    Attributes:
        first_s: seconds of computing, however few chats there are.
        each_s: further seconds for every chat.
        memory_bytes: beyond what the process holds.
        characters: of one rendered chat, beyond ``growth`` times those of its messages.
        growth: see ``characters``.
    """

    first_s: int = 5
    each_s: float = 0.02
    memory_bytes: int = 1 << 30
    characters: int = 1 << 17
    growth: int = 8

    def seconds(self, chats: int) -> int:
        """Of computing, for so many chats."""
        return self.first_s + int(self.each_s * chats)


BOUNDS = Bounds()


def first_unbounded(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[dict[str, str]]],
    *,
    add_generation_prompt: bool = False,
    bounds: Bounds | None = None,
) -> tuple[int, str] | None:
    """The first chat that the chat template does not render within bounds, and what it does; None where all are.

    A template that raises an error has ended: the error comes again where the chat is rendered.

    The chats are rendered in a fork of this process, which does nothing else, so that the template is compiled there
    too. Not for processes in which gRPC runs, such as Ray's actors.

    Args:
        tokenizer: with the chat template; without one nothing is rendered.
        chats: any number.
        add_generation_prompt: as in ``tokenizer.apply_chat_template``.
        bounds: default: :data:`BOUNDS`.

    Raises:
        UserError: the system has no room for a further process.
    """
    if not chats or not tokenizer.chat_template:
        return None
    bounds = bounds or BOUNDS
    tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template="-", tokenize=False)  # imports

    def render(chat: Sequence[dict[str, str]]) -> bool:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in chat], add_generation_prompt=add_generation_prompt, tokenize=False
        )
        given = sum(len(value) for message in chat for value in message.values())
        return len(text) <= bounds.characters + bounds.growth * given

    with mmap.mmap(-1, _INDEX_BYTES) as shared:
        status = _in_fork(lambda: _render_all(render, chats, shared), bounds, bounds.seconds(len(chats)))
        index = int.from_bytes(shared[:], "little")
    if status == 0:
        return None
    whole = f"{len(chats):,} chats" if len(chats) > 1 else "it"
    return index, {
        _TOO_LONG: f"renders more than {bounds.characters:,} characters beyond what it is given",
        _TOO_MUCH_MEMORY: f"needs more than {bounds.memory_bytes:,} bytes",
        -signal.SIGXCPU: f"does not end: {whole} took more than {bounds.seconds(len(chats))} s of computing",
        -signal.SIGKILL: "does not end, and was killed",
    }.get(status, f"ends the process that renders it, with status {status}")


def _render_all(
    render: Callable[[Sequence[dict[str, str]]], bool], chats: Sequence[Sequence[dict[str, str]]], shared: mmap.mmap
) -> int:
    """Render each chat; ``shared`` says which one is being rendered."""
    for index, chat in enumerate(chats):
        shared[:] = index.to_bytes(_INDEX_BYTES, "little")
        try:
            if not render(chat):
                return _TOO_LONG
        except MemoryError:
            return _TOO_MUCH_MEMORY
        except Exception:  # noqa: BLE001 a template may raise anything, and then it has ended
            continue
    return 0


def _in_fork(work: Callable[[], int], bounds: Bounds, seconds: int) -> int:
    """Exit status of a bounded fork of this process that does ``work``; negative: the signal that ended it."""
    held = _data_bytes()
    try:
        pid = os.fork()
    except OSError as error:
        raise UserError(f"the chat template cannot be tried in a process of its own: {error.strerror}") from error
    if pid == 0:
        status = _ODD_END
        try:
            _bound_this_process(seconds, None if held is None else held + bounds.memory_bytes)
            status = work()
        finally:
            os._exit(status)  # whatever was raised: nothing of the process that was forked goes on here
    try:
        return _status_of(pid, deadline=time.monotonic() + 30 + 10 * seconds)
    except BaseException:  # Ctrl-C
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _bound_this_process(seconds: int, data_bytes: int | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    gc.freeze()  # what was there before is not looked at, and its pages stay shared
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, seconds)
    if data_bytes is not None:
        _lower(resource.RLIMIT_DATA, data_bytes)


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (soft, hard))


def _data_bytes() -> int | None:
    """What RLIMIT_DATA counts of this process; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields: dict[str, Any] = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(fields["VmData"].split()[0]) * 1024


def _status_of(pid: int, deadline: float) -> int:
    """Wait for a child; one that is there at the deadline is killed."""
    pause_s = 0.001
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause_s)
        pause_s = min(0.02, 1.5 * pause_s)
