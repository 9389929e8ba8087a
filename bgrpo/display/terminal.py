"""Where everything is printed for people: plain text stays as it is, whatever brackets, colons or letters are in it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bgrpo.waits import waiting

PLAIN_WIDTH = 160


class PlainConsole(Console):
    """A console for text that users wrote: no markup, no emoji codes. Style comes from objects, see ``rich.text``.

    In a notebook it draws with ipywidgets, or where those are not installed prints plain lines.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> None:
        notebook = None if importlib.util.find_spec("ipywidgets") else False
        stream = file or (sys.stderr if stderr else sys.stdout)
        drawable = None if _is_terminal(stream) else False  # whatever FORCE_COLOR says, which a notebook's kernel sets
        super().__init__(
            stderr=stderr,
            width=width,
            file=file,
            markup=False,
            emoji=False,
            highlight=False,
            force_jupyter=notebook,
            force_terminal=drawable,
        )

    def on_broken_pipe(self) -> NoReturn:
        """The reader has gone: the entry point ends, see ``bgrpo.cli.app.main``."""
        raise BrokenPipeError


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def table_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or, in a pipe or a file, wide enough for every column of our tables."""
    console = PlainConsole(stderr=stderr)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return PlainConsole(stderr=stderr, width=PLAIN_WIDTH)


@contextmanager
def progress_bar(title: str, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal's standard error, gone when done; yields what moves it: (done, total).

    Elsewhere a line now and then, see :mod:`bgrpo.waits`.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    console = PlainConsole(stderr=True)
    if shown and not console.is_terminal:
        with waiting(title) as wait:

            def tell(done: int, total: int | None) -> None:
                wait.what = f"{title}, {done:,}{'' if total is None else f' of {total:,}'}"

            yield tell
        return
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
