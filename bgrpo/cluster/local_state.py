"""What is known of the local cluster: a file, a token and a log in ``~/.bgrpo/cluster``, for the user's eyes only."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bgrpo.cluster.private_ray import write_token
from bgrpo.errors import UserError
from bgrpo.files import parse_object, read_file, write_atomically


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A local cluster that was started.

    Attributes:
        pid: of the head, which leads its own session.
        created: when that process began, in seconds since 1970: a process id may be used again by another program.
        address: of the dashboard and job server.
        folder: Ray's folder of logs and sockets, which ends with the cluster.
        max_nodes: most nodes, the head included.
    """

    pid: int
    created: float
    address: str
    folder: str
    max_nodes: int

    def head(self) -> psutil.Process | None:
        """The head's process while it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class StateFolder:
    """``~/.bgrpo/cluster``, or any folder in its place; it holds at most one cluster.

    Args:
        path: the folder; made, for its owner only, when something is written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path.home() / ".bgrpo" / "cluster"

    @property
    def token_path(self) -> Path:
        """File of the token, where ``RAY_AUTH_TOKEN_PATH`` points."""
        return self.path / "token"

    @property
    def log_path(self) -> Path:
        """What ``ray start`` prints."""
        return self.path / "head.log"

    @property
    def _state_path(self) -> Path:
        return self.path / "state.json"

    def make(self) -> None:
        """Make the folder, for its owner only."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror}); a local cluster needs it") from error

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Only one process at a time starts or ends the cluster.

        Raises:
            UserError: another one does.
        """
        self.make()
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    "another bgrpo cluster local or down is at work: wait for it, then look: bgrpo cluster status"
                ) from error
            yield

    def read(self) -> ClusterState | None:
        """The cluster that was started last and not ended since, whether it lives or not.

        Raises:
            UserError: the file does not hold a state.
        """
        try:
            return ClusterState(**parse_object(read_file(self._state_path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._state_path}: is no state of a local cluster ({error}); remove it") from error

    def write(self, state: ClusterState) -> None:
        """Remember a cluster."""
        write_atomically(self._state_path, json.dumps(asdict(state)) + "\n")

    def forget(self) -> None:
        """Remove state and token; the log stays."""
        self._state_path.unlink(missing_ok=True)
        self.token_path.unlink(missing_ok=True)

    def make_token(self) -> str:
        """A new token, in place of the last cluster's."""
        self.token_path.unlink(missing_ok=True)
        return write_token(self.token_path)

    def token(self) -> str | None:
        """The local cluster's token; None when there is none."""
        try:
            return self.token_path.read_text("utf-8").strip()
        except FileNotFoundError:
            return None

    def token_for(self, address: str) -> str | None:
        """The token, when ``address`` is the dashboard of the local cluster and that cluster lives."""
        state = self.read()
        named = address.rstrip("/").replace("//localhost:", "//127.0.0.1:")
        return self.token() if state is not None and named == state.address and state.head() is not None else None
