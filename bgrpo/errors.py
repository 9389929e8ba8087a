"""Exceptions that entry points print without a traceback: what the user can mend, and why a run failed."""

from __future__ import annotations

import traceback


class UserError(Exception):
    """Something the user typed, wrote or provided is wrong.

    The message says what was wrong, where, and what would be right, in one line. Entry points print it without a
    traceback and exit with status 2 (see ``bgrpo.cli.app.main``).
    """


class RunError(RuntimeError):
    """A run failed for a reason that is known and that nobody typed: a process was lost, an exception in a learner.

    The message holds the first cause, with its place and traceback. Entry points print it without a traceback of
    their own and exit with status 1.
    """


class LostRunError(RunError):
    """This process owns the run's folder no more: it was removed or replaced, or another process took the run over.

    Nothing is written to the folder after it.
    """


class Stopped(BaseException):
    """SIGTERM or Ctrl-C asked the process to end; no :class:`Exception`, so that no handler of failures takes it.

    Attributes:
        name: of the signal, or what else asked.
        status: exit status of a process that ends for it.
    """

    def __init__(self, name: str, status: int) -> None:
        super().__init__(name)
        self.name, self.status = name, status


class DivergenceError(UserError):
    """Training diverged: the loss, the gradient or the KL left the range in which going on makes sense.

    The message says the step, the values, and what to try. Nothing is published or saved after it.
    """


def summary(error: BaseException) -> str:
    """One line that says what was raised and where."""
    lines = str(error).splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{where}"
