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


class DivergenceError(UserError):
    """Training diverged: the loss, the gradient or the KL left the range in which going on makes sense.

    The message says the step, the values, and what to try. Nothing is published or saved after it.
    """


def brief(error: BaseException, limit: int = 200) -> str:
    """What an exception says, in one line of at most ``limit`` characters, whatever a damaged file put into it."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "�" for letter in text[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def summary(error: BaseException) -> str:
    """One line that says what was raised and where."""
    lines = str(error).splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{where}"
