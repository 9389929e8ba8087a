"""The processes between a verifier and its check: they run nobody's code, and nothing that a check starts outlives it.

Started by :class:`bgrpo.scoring.check_link.CheckLink` as ``python -m bgrpo.scoring.check_guard CHANNEL CONTROL``, the
numbers of two sockets. There are two guards, parent and child, so that whoever kills one of them leaves the other. The
inner one forks the process that checks (:mod:`bgrpo.scoring.check_child`), which has the channel. The control socket
belongs to the inner guard: when the other side closes it, or dies, the check is killed. When the check has ended, by
itself or not, the inner guard writes its return code, as in :mod:`subprocess`, and ends whatever the check has started
and left behind. As a subreaper (prctl(2), Linux) it becomes the parent of all of that, whatever its session. The outer
guard does the same for what the inner one leaves.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _check(channel: socket.socket, guard: int) -> None:
    """Serve checks; ends with the guard."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it ended before the line above
        return
    with suppress(OSError):  # where memory is short, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    from bgrpo.scoring.check_child import serve

    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)  # it may be killed at any time
    serve(channel)


def _kill(reference: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(reference, signal.SIGKILL)


def _kill_when_closed(control: socket.socket, reference: int) -> None:
    with suppress(ConnectionError):
        control.recv(1)
    _kill(reference)


def _wait_for(pid: int) -> int:
    """Return code of a child; others that end meanwhile are reaped."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _end_with_children() -> NoReturn:
    """Kill all children, and those that become ours because their parent was one, until there are none; then end."""
    while pids := _children():
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for _ in pids:
            os.wait()
    os._exit(0)  # a guard's last act: nothing is left to be closed, and callers wait


def _children() -> list[int]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - ten times as fast as pathlib
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = Path("/proc", pid, "stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():  # after the name, which may hold anything
                found.append(int(pid))
    return found


def _guard(channel: socket.socket, control: socket.socket, outer: int) -> None:
    """Start the check, wait for its end or the other side's, end what is left."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard, check = os.getpid(), os.fork()
    if not check:
        control.close()
        _check(channel, guard)
        return
    channel.close()
    reference = os.pidfd_open(check)
    signal.signal(signal.SIGTERM, lambda *_: _kill(reference))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != outer:  # it ended before the line above
        _kill(reference)
    threading.Thread(target=_kill_when_closed, args=(control, reference), daemon=True).start()
    code = _wait_for(check)
    with suppress(OSError):  # nobody is there any more to be told
        control.sendall(b"%d\n" % code)
    _end_with_children()


def main(channel: socket.socket, control: socket.socket) -> None:
    """The outer guard."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where our starter ignores it, children would not wait for us
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    outer, inner = os.getpid(), os.fork()
    if not inner:
        _guard(channel, control, outer)
        return
    channel.close()
    control.close()
    _wait_for(inner)
    _end_with_children()


if __name__ == "__main__":
    inherited = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    for each in inherited:
        each.set_inheritable(False)
    main(*inherited)
