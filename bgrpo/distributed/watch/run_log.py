"""Log lines of a run's processes: one JSON object per line, which says what run, step, actor, host and process."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime

from bgrpo.runs.redaction import redact_credentials


class RunLog(logging.Formatter):
    """Formats records as JSON lines, without passwords.

    A record about another actor than the one that writes it names it: ``extra={"actor": "verifier 3"}``.

    Attributes:
        step: training steps done, where the process knows; it keeps this up to date.

    Args:
        run: name of the run.
        actor: who writes, for example ``learner 0``.
    """

    def __init__(self, run: str, actor: str) -> None:
        super().__init__()
        self._run = run
        self._actor = actor
        self._host = socket.gethostname()
        self.step: int | None = None

    def format(self, record: logging.LogRecord) -> str:
        """One line; ``trace`` is there when the record has an exception."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "run": self._run,
            "step": self.step,
            "actor": getattr(record, "actor", self._actor),
            "host": self._host,
            "pid": os.getpid(),
            "logger": record.name,
            "message": redact_credentials(record.getMessage()),
        }
        if record.exc_info:
            line["trace"] = redact_credentials(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def start_run_log(run: str, actor: str) -> RunLog:
    """From now on this process's log lines, from level INFO, go to its standard error in this form; Ray keeps them.

    A second call in one process replaces the first.

    Args:
        run: name of the run.
        actor: what this process is.
    """
    log = RunLog(run, actor)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log)
    logger = logging.getLogger("bgrpo")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return log
