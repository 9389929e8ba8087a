"""Exceptions that entry points print without a traceback: what the user can mend, and why a run failed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 2000
MAX_SUMMARY = 500


class UserError(Exception):
    """Something the user typed, wrote or provided is wrong.

    The message says what was wrong, where, and what would be right, in one line of bounded length, whatever texts it
    was made from. Entry points print it without a traceback and exit with status 2 (see ``bgrpo.cli.app.main``).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message), MAX_MESSAGE))


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


class NotFiniteError(UserError, FloatingPointError):
    """A policy computes something else than numbers. The message says where."""


class DivergenceError(UserError):
    """Training diverged: the loss, the gradient or the KL left the range in which going on makes sense.

    The message says the step, the values, and what to try. Nothing is published or saved after it.
    """


def one_line(text: str, limit: int = 200) -> str:
    """A text that fits a line of a terminal and changes nothing there: the middle of a long one is left out."""
    line = " ".join(part.strip() for part in _cut(text, limit).splitlines())
    return _cut("".join(c if c.isprintable() else repr(c)[1:-1] for c in line), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} … {text[-(limit // 3 - 3) :]}"


def brief(error: BaseException) -> str:
    """What an exception says, in one line, whatever a damaged file put into it."""
    return one_line(str(error)) or type(error).__name__


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
    except (KeyboardInterrupt, SystemExit, GeneratorExit, Stopped):
        raise
    except UserError as error:
        if (line := one_line(str(error), 600)) == str(error):
            raise
        raise UserError(line) from error
    except BaseException as error:  # panics of the tokenizers library, which is written in Rust, are BaseExceptions
        raise UserError(f"{what}: {brief(error)}") from error


def representation(value: object, limit: int = 60) -> str:
    """What an object that a user gave looks like, in a message: its ``repr`` may raise."""
    try:
        return one_line(repr(value), limit)
    except Exception:  # noqa: BLE001 somebody else's code
        return f"a {type(value).__name__}"


def summary(error: BaseException, *hidden: str) -> str:
    """One line that says what was raised and where; places in the files ``hidden`` and in importlib say nothing."""
    try:
        lines = str(error).splitlines() or [""]
    except Exception as failure:  # noqa: BLE001 a user's exception may be anything
        lines = [f"(its text cannot be made: {type(failure).__name__})"]
    every = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in every if frame.filename not in hidden and "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {one_line(lines[0], MAX_SUMMARY)}{where}"
