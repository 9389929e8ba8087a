"""Ray on this machine for one user alone: sockets on loopback, files and a token that no other user can read.

The names of these settings belong to the version of Ray that ``pyproject.toml`` pins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from bgrpo.errors import RunError, UserError

HOST = "127.0.0.1"
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
"""Where learners find each other; by themselves gloo and NCCL take the interface of the machine's name."""
LOOPBACK_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # Ray replaces 127.0.0.1 by the machine's outward address, and listens on all, unless it believes that this
    # machine cannot be part of a cluster of several.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
}
"""With ``HOST`` as the node's address, no process of a Ray that inherits this listens on anything but loopback."""
ONE_NODE_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Ray Train's process that watches which nodes are being drained has nothing to see where there is one node alone."""
SOCKETS_ROOT = Path("/tmp")
"""A short path: those of sockets are limited to 107 characters."""
TOKEN_BYTES = 32
logger = logging.getLogger(__name__)
SESSIONS_KEPT_S = 24 * 3600.0
"""Ray never removes what a session leaves: its logs."""


def private_folder() -> Path:
    """``/tmp/bgrpo-UID``, where this user alone can list, read, rename or delete; another name where that is taken.

    Ray opens the folders that it makes for everybody, so they belong into this one.
    """
    path = SOCKETS_ROOT / f"bgrpo-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="bgrpo-", dir=SOCKETS_ROOT))
    path.chmod(0o700)
    return path


def write_token(path: Path) -> str:
    """A new token, in a file that only its owner can read from its first moment on; an older one stays as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(prefix=".token", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        Path(made).unlink()
    return path.read_text("utf-8").strip()


def secure_token() -> None:
    """Make ``~/.ray/auth_token`` before Ray does, which would let everybody read it, and close one that is open.

    Nothing where ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH`` give the token.

    Raises:
        UserError: it cannot be made.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        if not path.exists():
            write_token(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise UserError(
            f"{path}: Ray's token cannot be kept there for you alone ({error.strerror}); mend the folder, or set "
            f"RAY_AUTH_TOKEN_PATH to a file that holds a token"
        ) from error


@contextlib.contextmanager
def private_ray(**options: Any) -> Iterator[None]:
    """A Ray of our own that ends with the block, on loopback, with a token.

    Args:
        options: of ``ray.init``, besides those that keep it private.

    Raises:
        UserError: there is no place for its token.
        RunError: it did not start; names the folder of its logs.
    """
    import ray
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    secure_token()
    log_what_ray_says()
    folder = private_folder() / "ray"
    _forget_old_sessions(folder)
    can_be_clustered = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported
    with _environment({**LOOPBACK_ENVIRONMENT, **ONE_NODE_ENVIRONMENT}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        Config.initialize("")  # reads RAY_AUTH_MODE again
        try:
            try:
                with _hangup_held():
                    ray.init(
                        address="local",
                        _node_ip_address=HOST,
                        _temp_dir=str(folder),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        **options,
                    )
            except Exception as error:  # of no class of its own: "the current node timed out during startup"
                raise RunError(
                    f"Ray did not start on this machine: {error} Its logs are in {folder}/session_latest/logs; nothing "
                    f"was begun, try again"
                ) from error
            yield
        finally:
            ray.shutdown()
            ray_constants.ENABLE_RAY_CLUSTER = can_be_clustered
    Config.initialize("")


def log_what_ray_says() -> None:
    """Ray prints what its raylet says on standard output, where it would stand among the lines of ``--json``."""
    from ray._private import worker

    def log(data: Any, ignore_prefix: bool) -> None:
        logger.warning("Ray: %s", " ".join(" ".join(map(str, data["lines"])).split()))

    worker.print_to_stdstream = log


@contextlib.contextmanager
def _hangup_held() -> Iterator[None]:
    """Processes that start in the block never see SIGHUP: a closed terminal sends it to the driver's whole group, and
    they are needed to save a checkpoint. Here it waits for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` with these variables while the block runs."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forget_old_sessions(folder: Path) -> None:
    """Remove logs of sessions that ended more than a day ago; the name of each ends with its driver's process id."""
    for session in folder.glob("session_*_*"):
        pid = session.name.rpartition("_")[2]
        if (
            not session.is_symlink()
            and time.time() - session.stat().st_mtime > SESSIONS_KEPT_S
            and not (pid.isdecimal() and psutil.pid_exists(int(pid)))
        ):
            shutil.rmtree(session, ignore_errors=True)
