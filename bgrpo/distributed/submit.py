"""Sending a training run to a Ray cluster as a job, and following its log."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Sequence

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from bgrpo.errors import UserError

EXCLUDED = [".venv", ".git", "runs", "mlruns", "mlflow.db", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist"]
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
        UserError: no cluster answers there, or it refuses the job.
    """
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", module, *arguments]),
            runtime_env={"working_dir": ".", "excludes": EXCLUDED},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--submit {address}: {' '.join(str(error).split())[:300]}") from error
    announce(job)
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}.get(_follow(client, job, write), 1)


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
