"""What went wrong in a learner, written where the driver finds it: the first cause, not only "a worker died"."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from bgrpo.errors import DivergenceError, LostRunError, UserError, brief
from bgrpo.files import open_to_append, parse_object, read_file
from bgrpo.runs.redaction import redact_credentials
from bgrpo.runs.run_folder import RunFolder

FILE = "failures.jsonl"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """One exception in one learner.

    Attributes:
        when: seconds since 1970.
        final: doing it again would fail again (a :class:`UserError`), so learners are not restarted.
        diverged: it is a :class:`DivergenceError`.
        where: learner, its training steps done, process and host.
        message: of a ``final`` failure: the line for the user; else type and message.
        trace: the traceback.
    """

    when: float
    final: bool
    where: str
    message: str
    trace: str
    diverged: bool = False


def record_failure(run_dir: Path, error: Exception, rank: int, step: int | None = None) -> None:
    """Log it and append it to the run's list of failures; several learners may do so at once.

    On a full disk nothing can be appended; the error that follows reaches the driver through Ray Train then.
    """
    final = isinstance(error, UserError)
    after = "" if step is None else f" after step {step}"
    logger.error("learner %d failed%s", rank, after, exc_info=error)
    if isinstance(error, LostRunError):  # the folder is somebody else's
        return
    failure = Failure(
        when=time.time(),
        final=final,
        where=f"learner {rank}{after} (process {os.getpid()} on {socket.gethostname()})",
        message=redact_credentials(str(error) if final else f"{type(error).__name__}: {error}"),
        trace=redact_credentials("".join(traceback.format_exception(error))),
        diverged=isinstance(error, DivergenceError),
    )
    try:
        with open_to_append(run_dir / FILE) as file:
            file.write(json.dumps(asdict(failure)) + "\n")
    except OSError as full:
        logger.warning("%s cannot be written (%s): %s", run_dir / FILE, full, failure.message)


def read_failures(run_dir: Path, since: float = 0.0) -> list[Failure]:
    """The run's failures from ``since`` (seconds since 1970) on, earliest first.

    Raises:
        UserError: the list cannot be read.
    """
    try:
        lines = read_file(run_dir / FILE).split(b"\n")  # the last piece is empty, or was cut off
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{run_dir / FILE}: cannot be read: {brief(error)}") from error
    parsed = (_parse(line) for line in lines)
    failures = [failure for failure in parsed if failure is not None and failure.when >= since]
    return sorted(failures, key=lambda failure: failure.when)


def _parse(line: bytes) -> Failure | None:
    """One line of the list; None when it is damaged."""
    try:
        return Failure(**parse_object(line))
    except (ValueError, TypeError):
        return None


def final_failure(run_dir: Path, since: float) -> Failure | None:
    """The failure that ends the run, if there is one."""
    return next((failure for failure in read_failures(run_dir, since) if failure.final), None)


def is_owned(folder: RunFolder) -> bool:
    """Whether this learner's driver still owns the run: a learner may outlive its driver."""
    try:
        folder.check_owner()
    except LostRunError as error:
        logger.error("%s", error)
        return False
    return True
