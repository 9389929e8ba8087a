"""Sending a training run to a Ray cluster as a job, and following its log."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from bgrpo.cluster.local_state import StateFolder
from bgrpo.errors import UserError
from bgrpo.runs.redaction import redact_credentials

CACHES = [".venv", ".git", "*.egg-info", ".*_cache", ".hypothesis"]
EXCLUDED = [*CACHES, "/runs", "/mlruns", "/mlflow.db", "/build", "/dist"]
"""As in a .gitignore; those with a slash only in the folder itself: the package has a folder ``runs`` too."""

POLL_S = 1.0
RECONNECTS = 120  # in a row, without a new line

logger = logging.getLogger(__name__)


def submit(
    address: str, module: str, arguments: Sequence[str], announce: Callable[[str], None], write: Callable[[str], None]
) -> int:
    """Run ``python -m module arguments`` on the cluster, with the current folder as its working directory.

    Args:
        address: of the dashboard, for example ``http://127.0.0.1:8265``.
        module: entry point.
        arguments: its command line.
        announce: called with the job's id once it is accepted.
        write: called with each piece of the job's output.

    Returns:
        0 when the job succeeded, 1 when it failed, 143 when it was stopped.

    Raises:
        UserError: no cluster answers there, or it refuses the job or the token.
    """
    token = find_token(address)
    try:
        client, job = _send(address, token, shlex.join(["python", "-m", module, *arguments]))
        announce(job)
        return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}.get(_follow(client, job, write), 1)
    except AuthenticationError as error:
        raise UserError(f"--submit {address}: {_token_advice(error)}") from error


def find_token(address: str) -> str | None:
    """The token for a cluster: of the local cluster if it is that one, else what Ray's variables name; None without.

    Raises:
        UserError: ``RAY_AUTH_TOKEN_PATH`` names a file that cannot be read.
    """
    local = StateFolder().token_for(address)
    if local is not None:
        return local
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not path:
        return None  # with RAY_AUTH_MODE=token Ray itself looks into ~/.ray/auth_token
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: cannot be read ({error})") from error


def refuse_credentials(texts: Iterable[str], source: str) -> None:
    """A job's command line and its folder are kept by Ray and shown to whoever has the token: no password in them.

    Args:
        texts: arguments, or lines of a file, that are to be sent.
        source: what they are, for the message.

    Raises:
        UserError: one of them holds a user or password; names it, without them.
    """
    for text in texts:
        shown = redact_credentials(text)
        if shown != text:
            raise UserError(
                f"{source}: {shown.strip()}: what --submit sends is shown to all users of the cluster, so it may hold "
                f"no user or password; give the address alone, and set MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD in the environment of the cluster's head"
            )


def _send(address: str, token: str | None, command: str) -> tuple[JobSubmissionClient, str]:
    try:
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
        job = client.submit_job(entrypoint=command, runtime_env={"working_dir": ".", "excludes": EXCLUDED})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--submit {address}: {' '.join(str(error).split())[:300]}") from error
    return client, job


def _token_advice(error: AuthenticationError) -> str:
    if "required" in str(error):  # 401
        return "this cluster wants a token: set RAY_AUTH_TOKEN_PATH to the file that holds it, or RAY_AUTH_TOKEN"
    return "this cluster refuses the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def _follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> JobStatus:
    """Pass the log on until the job has ended; a lost connection is taken up again where it broke."""
    written = 0

    async def pass_on() -> None:
        nonlocal written
        position = 0
        async for text in client.tail_job_logs(job):
            write(text[max(0, written - position) :])
            position += len(text)
            written = max(written, position)

    attempts = 0
    while attempts < RECONNECTS:
        before = written
        try:
            asyncio.run(pass_on())
            status = client.get_job_status(job)
            if status.is_terminal():
                return status
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            logger.debug("job %s: %s", job, error)
        attempts = 0 if written > before else attempts + 1
        time.sleep(POLL_S)
    raise UserError(f"job {job}: its log cannot be followed; it goes on: ray job logs --follow {job}")
