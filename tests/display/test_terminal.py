"""Tables in a pipe or a file lose no column."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from bgrpo.display.terminal import progress_bar, table_console


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


def test_nothing_is_drawn_where_no_terminal_is_whatever_a_notebooks_kernel_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "CLICOLOR": "1", "TERM": "xterm-color"}.items():
        monkeypatch.setenv(name, value)
    with progress_bar("reading") as show:
        show(1, 2)
    assert not table_console(stderr=True).is_terminal
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr("sys.stderr", stream)
        assert not table_console(stderr=True).is_terminal
    assert capsys.readouterr() == ("", "")


def test_a_width_that_was_asked_for_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table_console(stderr=True).print(wide_table())
    printed = capsys.readouterr().err
    assert max(map(len, printed.splitlines())) == 60
