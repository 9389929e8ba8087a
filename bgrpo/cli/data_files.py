"""What the commands that count, compare and mix data files do: histogram, overlap, mix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.table import Table

from bgrpo.cli.measure import written
from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.errors import UserError
from bgrpo.files import check_target
from bgrpo.tasks.base import Task
from bgrpo.tasks.histogram import compare_files, count_problems
from bgrpo.tasks.mixing import Source, mixture, plan_mixture

MANY_VALUES = 40  # of one quantity; more are shown by ranges


def check_out(task: Task, out: Path, overwrite: bool, data: Sequence[Path] = ()) -> None:
    """Refuse a file that cannot be written, or could not be read again.

    Raises:
        UserError: it is there, it is one of the data files, or its name does not say what it holds.
    """
    check_target(out, "--out", overwrite=overwrite)
    suffixes = getattr(task, "record_suffixes", ())
    if suffixes and out.suffix.lower() not in suffixes:
        raise UserError(
            f"--out {out}: task {task.name!r} writes lines of JSON: give a name that ends with {suffixes[0]}"
        )
    if any(out.exists() and path.exists() and out.samefile(path) for path in data):
        raise UserError(f"--out {out}: is one of the files that are read; give another name")


def mix_files(
    task: Task, data: Sequence[str], count: int | None, seed: int, out: Path, overwrite: bool, as_json: bool
) -> int:
    """Write a mixture of files, and print what it holds."""
    sources = [_source(text) for text in data]
    check_out(task, out, overwrite, [source.path for source in sources])
    with progress_bar("reading") as show:
        parts = plan_mixture(task, sources, count, lambda done: show(done, None))
    total = sum(part.taken for part in parts)
    with progress_bar("mixing") as show, written(out) as file:
        for done, record in enumerate(mixture(task, parts, seed), start=1):
            file.write(f"{record.text}\n")
            if done % 1000 == 0:
                show(done, total)
    rows: list[dict[str, Any]] = [
        {"file": str(part.path), "problems": len(part.own), "repeated": len(part.own) - part.there, "taken": part.taken}
        for part in parts
    ]
    if as_json:
        print(json.dumps({"out": str(out), "problems": total, "seed": seed, "files": rows}))
        return 0
    table = Table(title=f"{out}: {total:,} problems")
    table.add_column("file")
    for name in ("problems", "repeated", "taken"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["file"], *(f"{row[name]:,}" for name in ("problems", "repeated", "taken")))
    table_console().print(table)
    return 0


def show_overlap(task: Task, first: Path, second: Path, as_json: bool) -> int:
    """Print how many problems two files share."""
    with progress_bar("comparing") as show:
        found = compare_files(task, first, second, lambda done: show(done, None))
    if as_json:
        print(json.dumps({"files": [str(first), str(second)], **found}))
        return 0
    table = Table(title=f"{found['common_distinct']:,} problems are in both files")
    table.add_column("file")
    for name in ("problems", "different ones", "also in the other"):
        table.add_column(name, justify="right")
    for path, name, other in ((first, "first", "first_in_second"), (second, "second", "second_in_first")):
        table.add_row(str(path), f"{found[name]:,}", f"{found[f'{name}_distinct']:,}", f"{found[other]:,}")
    table_console().print(table)
    return 0


def show_histogram(task: Task, data: Sequence[Path], png: Path | None, as_json: bool) -> int:
    """Print, and perhaps draw, how many problems there are of each kind."""
    if png is not None:
        check_target(png, "--png")
    with progress_bar("counting") as show:
        found = count_problems(task, data, lambda done: show(done, None))
    if not found["problems"]:
        raise UserError(f"{', '.join(map(str, data))}: no problem")
    if png is not None:
        from bgrpo.display.histograms import draw_histogram

        draw_histogram(found, png)
    if as_json:
        print(json.dumps(found))
        return 0
    console = table_console()
    if grid := found.get("grid"):
        console.print(_grid_table(grid, found["problems"]))
    shown = [grid["rows"], grid["columns"]] if grid else []
    if grid and sum(count for _, _, count in grid["cells"]) == found["problems"]:
        shown.append("category")
    for name, counts in found["by"].items():
        if name not in shown and set(counts) - {""}:
            console.print(_counts_table(name, counts))
    if png is not None:
        print(f"picture: {png}")
    return 0


def _grid_table(grid: Mapping[str, Any], problems: int) -> Table:
    cells = {(row, column): count for row, column, count in grid["cells"]}
    columns = sorted({column for _, column in cells})
    shown = sum(cells.values())
    table = Table(title=f"{problems:,} problems by {grid['rows']} (down) and {grid['columns']} (across)")
    if shown < problems:
        table.caption = f"{problems - shown:,} have no such pair"
    table.add_column(f"{grid['rows']} \\ {grid['columns']}", justify="right")
    for column in columns:
        table.add_column(str(column), justify="right")
    for row in sorted({row for row, _ in cells}):
        table.add_row(str(row), *(f"{cells[row, column]:,}" if (row, column) in cells else "" for column in columns))
    return table


def _counts_table(name: str, counts: Mapping[str, int]) -> Table:
    total = sum(counts.values())
    table = Table()
    table.add_column(name.replace("_", " "))
    table.add_column("problems", justify="right")
    table.add_column("share", justify="right")
    for label, count in _grouped(counts) if len(counts) > MANY_VALUES else counts.items():
        table.add_row(label or "–", f"{count:,}", f"{count / total:.1%}")
    return table


def _grouped(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Many numbers as some ten ranges of one width; many words as the most frequent ones."""
    if not all(value.isdecimal() for value in counts):
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        rest = sum(count for _, count in ordered[MANY_VALUES:])
        return [*ordered[:MANY_VALUES], (f"{len(ordered) - MANY_VALUES:,} others", rest)]
    numbers = {int(value): count for value, count in counts.items()}
    low, high = min(numbers), max(numbers)
    width = max(1, -(-(high - low + 1) // 10))
    bins = [(start, start + width - 1) for start in range(low, high + 1, width)]
    return [
        (f"{start}–{end}", sum(count for number, count in numbers.items() if start <= number <= end))
        for start, end in bins
    ]


def _source(text: str) -> Source:
    """``FILE`` or ``FILE=SHARE``."""
    path, equals, share = text.rpartition("=")
    if not equals:
        return Source(Path(text), Fraction(1))
    try:
        number = Fraction(share)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--data {text}: expected FILE or FILE=SHARE, as train.txt=0.5") from None
    if number <= 0:
        raise UserError(f"--data {text}: the share must be above 0")
    return Source(Path(path), number)
