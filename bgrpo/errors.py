"""Exceptions that entry points print without a traceback: what the user can mend, and why a run failed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


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


class NotFiniteError(UserError, FloatingPointError):
    """A policy computes something else than numbers. The message says where."""


class DivergenceError(UserError):
    """Training diverged: the loss, the gradient or the KL left the range in which going on makes sense.

    The message says the step, the values, and what to try. Nothing is published or saved after it.
    """


def one_line(text: str, most: int = 200) -> str:
    """A foreign text fit for a message: without line ends and control characters, and cut to ``most`` characters."""
    flat = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text[: 4 * most].split()))
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


@contextmanager
def reading(what: str) -> Iterator[None]:
    """The boundary of a loader of foreign files: whatever their content makes a library raise becomes one line.

    Args:
        what: begins the message: the file, and what cannot be done with it.

    Raises:
        UserError: in place of any error; a UserError of the block stays, in one line of bounded length.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except UserError as error:
        if (line := one_line(str(error), 600)) == str(error):
            raise
        raise UserError(line) from error
    except BaseException as error:  # panics of the tokenizers library, which is written in Rust, are BaseExceptions
        raise UserError(f"{what}: {one_line(str(error)) or type(error).__name__}") from error


def summary(error: BaseException) -> str:
    """One line that says what was raised and where."""
    lines = str(error).splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{where}"
