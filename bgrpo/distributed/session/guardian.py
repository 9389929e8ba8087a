"""A small process that outlives a driver for a moment, and ends what the driver's private Ray leaves behind.

The raylet and the GCS end with the driver, however that ends; agents and workers of theirs may stay for minutes. All
of them have inherited a token in their environment, by which they are known. This file is also the program of that
process: it needs nothing beyond Python's own library.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOKEN = "BGRPO_PRIVATE_RAY"
GRACE_S, SWEEP_S, END_S = 1.0, 0.3, 10.0
TRAIN_FOLDER = "bgrpo-train-"
"""Folders of Ray Train's own files, in the folder of temporary files; the process that made one follows in its name."""


@contextmanager
def guardian() -> Iterator[None]:
    """Whatever is started in the block with this process's environment ends soon after the block, or this process."""
    token = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token, str(os.getpid())],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the driver
    ) as process:
        os.environ[TOKEN] = token
        try:
            yield
        finally:
            os.environ.pop(TOKEN, None)
            process.communicate(timeout=2 * END_S)  # closes its input, as the driver's end would


def remove_train_folders(driver: str = "") -> None:
    """Folders of Ray Train of a driver, by default of all that have ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TRAIN_FOLDER}*"):
        pid = folder.name.removeprefix(TRAIN_FOLDER).partition("-")[0]
        over = pid == driver if driver else pid.isdecimal() and not Path("/proc", pid).exists()
        with suppress(FileNotFoundError):
            if over and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _members(token: str) -> list[int]:
    """Processes that have the token in their environment."""
    wanted, found = f"{TOKEN}={token}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _guard(token: str, driver: str) -> None:
    sys.stdin.buffer.read()  # until the driver closes it, or ends
    left = time.monotonic() + GRACE_S
    while members := _members(token):
        if time.monotonic() > left:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(SWEEP_S)
        if time.monotonic() > left + END_S:
            break
    remove_train_folders(driver)


if __name__ == "__main__":
    _guard(*sys.argv[1:])
