"""What the benchmarks' commands do."""

from __future__ import annotations

import json
import sys
from itertools import count as count_from
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.files import check_target
from bgrpo.tasks.base import Task, ability


def measure_task(task: Task, seconds: float, as_json: bool) -> int:
    """Print the speed of the check and of the generator."""
    measure_speed = ability(task, "measure_speed", "bgrpo bench task")
    with Console(stderr=True).status("measuring"):
        result = measure_speed(seconds)
    if as_json:
        print(json.dumps(result))
    else:
        Console().print_json(data=result)
    return 0


def measure_rollouts(
    cases: list[str] | None,
    engines: list[str] | None,
    threads: int,
    rounds: int,
    seconds: float,
    longest: float,
    memory: str,
    png: Path | None,
    as_json: bool,
) -> int:
    """Print each case of the rollout benchmark as it comes; 1 when engines that must agree do not."""
    from bgrpo.bench.rollouts.cases import ENGINES, DisagreementError
    from bgrpo.bench.rollouts.parent import RolloutBench
    from bgrpo.bench.rollouts.plot import plot_rollouts
    from bgrpo.bench.rollouts.report import case_table, notes

    bench = RolloutBench(
        tuple(cases or ["standard"]), tuple(engines or ENGINES), threads, rounds, seconds, longest, memory
    )
    if png is not None:
        check_target(png, "--png")
    console = table_console()
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    with progress_bar("measuring") as show:
        turns = count_from(1)
        try:
            for result in bench.run(lambda: show(next(turns), bench.turns())):
                rows, machine = rows + result.rows, machine or result.machine
                if not as_json:
                    console.print(case_table(result.case, result.rows))
        except DisagreementError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if as_json:
        print(json.dumps({"rows": rows, "machine": machine}))
    for line in [] if as_json else notes(rows, machine):
        console.print(line, markup=False, soft_wrap=True)
    if png is not None:
        plot_rollouts(rows, machine, png)
    return 0


def measure_scaling(png: Path | None, as_json: bool) -> int:
    """Print what one and two rollout actors do here, and what the simulation makes of it for up to 256."""
    from bgrpo.bench.machine import describe_machine
    from bgrpo.bench.scaling import report as scaling
    from bgrpo.bench.scaling.costs import measure

    if png is not None:
        check_target(png, "--png")
    machine = describe_machine()
    with Console(stderr=True).status("measuring") as status:
        measured = measure(lambda what: status.update(f"measuring {what}"))
        status.update("simulating")
        policies = {"shipped": measured.costs, "19M": measured.large}
        size = measured.completions_per_request
        rows = [row for name, costs in policies.items() for row in scaling.simulate_rows(name, costs, size)]
    if png is not None:
        scaling.plot_scaling(measured, rows, png)
    if as_json:
        print(json.dumps(scaling.result(measured, rows, machine)))
        return 0
    console = table_console()
    for line in scaling.report_lines(measured):
        console.print(line, markup=False, soft_wrap=True)
    for policy, shape in product(policies, scaling.SHAPES):
        console.print(scaling.scaling_table(rows, policy, shape))
        for staleness in (0, 1):
            console.print(scaling.conclusion(rows, policy, shape, staleness), markup=False, soft_wrap=True)
    return 0


def measure_step(parts: list[str], png: Path | None, as_json: bool) -> int:
    """Print where a training step's time goes."""
    from bgrpo.bench.step.parent import TURNS, check_parts, measure
    from bgrpo.bench.step.report import plot_step, step_tables

    chosen = check_parts(parts)
    if png is not None:
        check_target(png, "--png")
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    turns = count_from(1)
    with progress_bar("measuring") as show:
        for line in measure(chosen, lambda: show(next(turns), sum(TURNS[part] for part in chosen))):
            rows += [line["row"]] if "row" in line else []
            machine = machine or line.get("machine", {})
    if as_json:
        print(json.dumps({"rows": rows, "machine": machine}))
    else:
        console = table_console()
        for table in step_tables(rows):
            console.print(table)
    if png is not None:
        plot_step(rows, png)
    return 0
