"""Tables in a pipe or a file lose no column."""

from __future__ import annotations

import pytest
from rich.table import Table

from bgrpo.display.terminal import table_console


def wide_table() -> Table:
    table = Table()
    for number in range(10):
        table.add_column(f"column {number}", no_wrap=True)
    table.add_row(*(f"value {number}" for number in range(10)))
    return table


def test_every_column_is_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table_console().print(wide_table())
    printed = capsys.readouterr().out
    assert all(f"column {number}" in printed and f"value {number}" in printed for number in range(10))


def test_a_width_that_was_asked_for_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table_console(stderr=True).print(wide_table())
    printed = capsys.readouterr().err
    assert max(map(len, printed.splitlines())) == 60
