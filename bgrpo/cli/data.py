"""What the commands on data files do: generate-data, verify."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bgrpo.cli.measure import _checked_ring, _load
from bgrpo.display.terminal import progress_bar
from bgrpo.errors import UserError
from bgrpo.files import check_target
from bgrpo.tasks.base import load_task


@dataclass(frozen=True, slots=True)
class GeneratorRequest:
    """What ``generate-data`` was asked for; see ``bgrpo generate-data --help``."""

    degrees: list[str]
    coefficients: int
    kind: str
    variables: int | None
    leading: str
    exclude: list[Path]


def verify_data(data: Path, ring: str, as_json: bool) -> int:
    """Print what every line's own answer is."""
    from bgrpo.tasks.polynomial.files import verify_file

    with progress_bar("checking") as show:
        result = verify_file(data, _checked_ring(ring), progress=lambda done: show(done, None))
    if as_json:
        print(json.dumps(result))
        return 0
    console = Console(highlight=False)
    console.print(f"{data}: {result['lines']:,} lines, {result['microseconds_per_check']:.0f} µs each", soft_wrap=True)
    table = Table()
    table.add_column("outcome of the line's own answer")
    table.add_column("lines", justify="right")
    for outcome, count in result["outcomes"].items():
        table.add_row(outcome, f"{count:,}")
    console.print(table)
    for bad in result["first_bad"]:
        console.print(f"{data}:{bad['line']}: {bad['outcome']}", soft_wrap=True)
    return 0


def generate_problems(request: GeneratorRequest, count: int, seed: int, out: Path, workers: int) -> int:
    """Write a data file of random problems."""
    from bgrpo.tasks.polynomial.files import generate_file
    from bgrpo.tasks.polynomial.options import GeneratorOptions

    check_target(out, "--out")
    options: dict[str, Any] = {
        "kind": request.kind,
        "degrees": [_parse_degrees(text) for text in request.degrees],
        "coefficients": request.coefficients,
        "leading": request.leading,
    }
    if request.variables is not None:
        options["variables"] = request.variables
    drawn = GeneratorOptions.from_dict(options)
    task = load_task("polynomial")
    exclude = [problem.prompt for path in request.exclude for problem in _load(task, path)]
    started = time.monotonic()
    with progress_bar("generating") as show:
        generate_file(drawn, count, seed, out, workers, progress=lambda done: show(done, count), exclude=exclude)
    rate = count / (time.monotonic() - started)
    print(f"{out}: {count:,} problems, {rate:,.0f} per second", file=sys.stderr)
    return 0


def _parse_degrees(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--degrees {text}: expected OUTER,INNER, for example 2,3")
    return [int(part) for part in parts]
