"""Noticing that the cluster's head is lost: Ray ends a driver that has none, before that could say anything itself."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from ray.exceptions import RayError

from bgrpo.cluster.private_ray import private_folder
from bgrpo.errors import RunError
from bgrpo.runs.stopping import end_process

POLL_S = 1.0
PROBE_S = 2.0
FAILURES = 3
"""So many probes in a row must fail: a busy machine may miss one."""

LOST = (
    "the head of the Ray cluster, {address}, does not answer: it has ended, or cannot be reached. Unless it comes back "
    "soon, this process ends. Complete checkpoints are kept: once there is a cluster again, go on with --resume"
)
ENDED = (
    "the head of the Ray cluster, {address}, does not answer: it has ended, or cannot be reached, and what ran there "
    "has failed with it. Complete checkpoints are kept: once there is a cluster again, go on with --resume"
)
BACK = "the head of the Ray cluster, {address}, answers again; one that was started anew does not know this process"


OWN_PROCESSES = ("raylet", "gcs_server")
OWN_LOST = (
    "Ray's {name} on this machine (process {pid}) has ended, and with it the processes of this command; its logs are "
    "in {logs}. Complete checkpoints are kept: go on with --resume"
)


@contextmanager
def own_ray_watch() -> Iterator[None]:
    """While the block runs, the loss of a raylet or a GCS that this process has started ends it, with one line.

    A thread waits for their end, because Ray notices it too, and then ends the process after a long dump.
    """
    names = {
        os.pidfd_open(child.pid): (child.name(), child.pid)
        for child in psutil.Process().children()
        if child.name() in OWN_PROCESSES
    }
    over, end = os.pipe()

    def watch() -> None:
        poll = select.poll()
        for descriptor in (over, *names):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if over in ready:
            return
        name, pid = names[ready.pop()]
        terminal = os.fdopen(os.dup(2), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for Ray's dump, which is in its logs too
        end_process(
            "failed",
            OWN_LOST.format(name=name, pid=pid, logs=private_folder() / "ray/session_latest/logs"),
            1,
            terminal,
        )

    thread = threading.Thread(target=watch, name="own Ray watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(end)  # ends the thread
        thread.join()
        for descriptor in (over, *names):
            os.close(descriptor)


@contextmanager
def head_watch(address: str, tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a thread tells when the head stops answering, and when it answers again.

    Args:
        address: ``host:port`` of the head's GCS.
        tell: called in the thread with the line for the user.

    Raises:
        RunError: the block failed, and the head is lost: what learners say of it is a consequence.
    """
    over = threading.Event()

    def watch() -> None:
        failures = 0
        while not over.wait(POLL_S):
            if not _accepts(address):
                failures += 1
                if failures == FAILURES:
                    tell(LOST.format(address=address))
                continue
            if failures >= FAILURES:
                tell(BACK.format(address=address))
            failures = 0

    thread = threading.Thread(target=watch, name="head watch", daemon=True)
    thread.start()
    try:
        yield
    except (RunError, RayError) as error:
        if any(_accepts(address) for _ in range(FAILURES)):
            raise
        raise RunError(ENDED.format(address=address)) from error
    finally:
        over.set()
        thread.join(PROBE_S + POLL_S)


def _accepts(address: str) -> bool:
    """True when something accepts connections there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S):
            return True
    except OSError:
        return False
