"""Where tables are printed."""

from __future__ import annotations

import os

from rich.console import Console

PLAIN_WIDTH = 160


def table_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or, in a pipe or a file, wide enough for every column of our tables."""
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)
