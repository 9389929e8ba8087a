"""What the commands on data files do: generate-data, verify."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NotRequired

from rich.table import Table
from typing_extensions import TypedDict

from bgrpo.cli.task_options import checked_ability, generator_options, load_problems
from bgrpo.display.terminal import PlainConsole, progress_bar
from bgrpo.files import check_target
from bgrpo.tasks.base import Task, ability


class BadLine(TypedDict):
    """A line whose own answer is not correct; a check that failed may say why."""

    line: int
    outcome: str
    detail: NotRequired[str]


class Verified(TypedDict):
    """What a task's ``verify`` gives."""

    outcomes: dict[str, int]  # of all lines
    lines: int
    microseconds_per_check: float
    first_bad: list[BadLine]


def verify_data(task: Task, data: Path, as_json: bool) -> int:
    """Print what every line's own answer is."""
    verify = checked_ability(task, "verify", "bgrpo verify", Verified)
    with progress_bar("checking") as show:
        result = verify(data, lambda done: show(done, None))
    if as_json:
        print(json.dumps(result))
        return 0
    console = PlainConsole()
    console.print(f"{data}: {result['lines']:,} lines, {result['microseconds_per_check']:.0f} µs each", soft_wrap=True)
    table = Table()
    table.add_column("outcome of the line's own answer")
    table.add_column("lines", justify="right")
    for outcome, count in result["outcomes"].items():
        table.add_row(outcome, f"{count:,}")
    console.print(table)
    for bad in result["first_bad"]:
        detail = f": {bad['detail']}" if bad.get("detail") else ""
        console.print(f"{data}:{bad['line']}: {bad['outcome']}{detail}", soft_wrap=True, markup=False)
    return 0


def generate_problems(
    task: Task,
    generator: list[str],
    count: int,
    seed: int,
    out: Path,
    workers: int,
    exclude: list[Path],
    overwrite: bool,
) -> int:
    """Write a data file of random problems.

    Args:
        task: whose problems.
        generator: the rest of the command line, ``--key value`` pairs for the task's generator.
        count: how many.
        seed: of the draw.
        out: the file.
        workers: processes.
        exclude: data files whose problems are left out.
        overwrite: a file that is there is replaced.
    """
    write_data = ability(task, "write_data", "bgrpo generate-data")
    check_target(out, "--out", overwrite=overwrite)
    options = generator_options(generator)
    prompts = [problem.prompt for path in exclude for problem in load_problems(task, path)]
    started = time.monotonic()
    with progress_bar("generating") as show:
        write_data(options, count, seed, out, workers, lambda done: show(done, count), prompts)
    rate = count / (time.monotonic() - started)
    print(f"{out}: {count:,} problems, {rate:,.0f} per second", file=sys.stderr)
    return 0
