"""How every benchmark shows its result: tables and lines, or JSON, and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from bgrpo.display.png import write_png
from bgrpo.display.terminal import table_console
from bgrpo.files import check_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
DASH = "–"


def make_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table: the first column left, the others right. A row whose other cells are all dashes is dim."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="dim" if set(row[1:]) == {DASH} else None)
    return table


def figure_text(value: float | None, form: str) -> str:
    """A number for a table, a dash for None."""
    return DASH if value is None else format(value, form)


class Output:
    """Where a benchmark's result goes.

    Args:
        png: file of the picture; None: none is drawn.
        as_json: print the result as JSON, and nothing else.

    Raises:
        UserError: ``png`` cannot be written. This is found before anything is measured.
    """

    def __init__(self, png: Path | None, as_json: bool) -> None:
        if png is not None:
            check_target(png, "--png")
        self._png = png
        self._as_json = as_json
        self._console = table_console()

    def show(self, *items: Table | str) -> None:
        """Print tables and lines for people."""
        for item in () if self._as_json else items:
            self._console.print(item, markup=False, soft_wrap=isinstance(item, str))

    def finish(self, result: Mapping[str, Any], draw: Callable[[], Figure] | None = None) -> None:
        """Print the JSON and write the picture, where they were asked for."""
        if self._as_json:
            print(json.dumps(result))
        if self._png is not None and draw is not None:
            write_png(draw(), self._png)
