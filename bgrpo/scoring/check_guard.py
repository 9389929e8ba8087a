"""The process between a verifier and its check: it runs nobody's code, and sees to it that nothing outlives the check.

Started by :class:`bgrpo.scoring.check_link.CheckLink` as ``python -m bgrpo.scoring.check_guard CHANNEL CONTROL``, the
numbers of two sockets. It forks the process that checks (:mod:`bgrpo.scoring.check_child`), which has the channel. The
control socket is the guard's own: when the other side closes it, or dies, the check is killed. When the check has
ended, by itself or not, the guard writes its return code, as in :mod:`subprocess`, and ends whatever the check has
started and left behind. As a subreaper (prctl(2), Linux) it becomes the parent of all of that, whatever its session.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

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

    serve(channel)


def _kill_when_closed(control: socket.socket, check: int) -> None:
    control.recv(1)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(check, signal.SIGKILL)


def _wait_for(pid: int) -> int:
    """Return code of a child; others that end meanwhile are reaped."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _end_children() -> None:
    """Kill all children, and those that become ours because their parent was one, until there are none."""
    while pids := _children():
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for _ in pids:
            os.wait()


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = stat.read_bytes().rpartition(b")")[2].split()[1]  # after the name, which may hold anything
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def main(channel: socket.socket, control: socket.socket) -> None:
    """Start the check, wait for its end or the other side's, end what is left."""
    guard = os.getpid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    check = os.fork()
    if not check:
        control.close()
        _check(channel, guard)
        return
    channel.close()
    threading.Thread(target=_kill_when_closed, args=(control, os.pidfd_open(check)), daemon=True).start()
    code = _wait_for(check)
    with suppress(OSError):  # nobody is there any more to be told
        control.sendall(b"%d\n" % code)
    _end_children()


if __name__ == "__main__":
    inherited = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    for each in inherited:
        each.set_inheritable(False)
    main(*inherited)
