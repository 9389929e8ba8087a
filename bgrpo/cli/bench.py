"""What the benchmarks' commands do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import Any

from bgrpo.bench.output import Output, make_table
from bgrpo.bench.turns import DisagreementError
from bgrpo.cli.task_options import checked_ability
from bgrpo.display.terminal import PlainConsole, progress_bar
from bgrpo.tasks.base import Task


def measure_task(task: Task, seconds: float, as_json: bool) -> int:
    """Print the speed of the check and of the generator."""
    measure_speed = checked_ability(task, "measure_speed", "bgrpo bench task", dict[str, float | dict[str, float]])
    output = Output(None, as_json)
    with PlainConsole(stderr=True).status("measuring"):
        result = measure_speed(seconds)
    figures: dict[str, float] = {}
    for name, found in result.items():
        figures |= {f"{name}, {of}": value for of, value in found.items()} if isinstance(found, dict) else {name: found}
    output.show(make_table(f"{task.name}, one core", ["", ""], [[name, f"{x:,.1f}"] for name, x in figures.items()]))
    output.finish(result)
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
    from bgrpo.bench.rollouts.cases import ENGINES
    from bgrpo.bench.rollouts.rollout_bench import RolloutBench
    from bgrpo.bench.rollouts.rollout_picture import draw_rollouts
    from bgrpo.bench.rollouts.rollout_tables import case_table, notes

    bench = RolloutBench(cases or ["standard"], engines or [*ENGINES], threads, rounds, seconds, longest, memory)
    output = Output(png, as_json)
    result: dict[str, Any] = {"rows": [], "machine": {}}
    try:
        with _turns(bench.turns()) as on_turn:
            for case, rows, machine in bench.run(on_turn):
                result = {"rows": result["rows"] + rows, "machine": result["machine"] or machine}
                output.show(case_table(case, rows))
    except DisagreementError as error:
        return _disagreement(error)
    output.show(*notes(**result))
    output.finish(result, lambda: draw_rollouts(result))
    return 0


def measure_step(parts: list[str], png: Path | None, as_json: bool) -> int:
    """Print where a training step's time goes; 1 when what is compared computes something else."""
    from bgrpo.bench.step.step_bench import TURNS, check_parts, measure_parts
    from bgrpo.bench.step.step_tables import draw_step, step_tables

    chosen = check_parts(parts)
    output = Output(png, as_json)
    try:
        with _turns(sum(TURNS[part] for part in chosen)) as on_turn:
            result = measure_parts(chosen, on_turn)
    except DisagreementError as error:
        return _disagreement(error)
    output.show(*step_tables(result["rows"]))
    output.finish(result, lambda: draw_step(result))
    return 0


def measure_scaling(png: Path | None, as_json: bool) -> int:
    """Print what one and two rollout actors do here, and what the simulation makes of it for up to 256."""
    from bgrpo.bench.machine import describe_machine
    from bgrpo.bench.scaling.scaling_bench import measure_scaling, scaling_result
    from bgrpo.bench.scaling.simulation import ASSUMPTIONS, POLICIES, REQUESTS, draw_scaling, ending, scaling_table

    output = Output(png, as_json)
    machine = describe_machine()
    with PlainConsole(stderr=True).status("measuring") as status:
        measured, curves = measure_scaling(status.update)
    output.show(*measured.tables(), "the simulation assumes:", *(f"- {assumption}" for assumption in ASSUMPTIONS))
    for policy, shape in product(POLICIES, REQUESTS):
        ends = [f"staleness {staleness}: {ending(curves[policy, shape, staleness])[1]}" for staleness in (0, 1)]
        output.show(scaling_table(curves, policy, shape), *ends)
    result = scaling_result(measured, curves, machine)
    output.finish(result, lambda: draw_scaling(curves, measured.rollouts_per_s))
    return 0


def measure_advantages(groups: int, png: Path | None, as_json: bool) -> int:
    """Print bias and spread of the gradient estimates that the advantages make, on a policy whose gradient is known."""
    from dataclasses import asdict

    from bgrpo.bench.gradients.gradient_picture import draw_gradients, gradient_tables, measure_gradients

    output = Output(png, as_json)
    with PlainConsole(stderr=True).status("measuring"):
        curves = measure_gradients(groups)
    output.show(*gradient_tables(curves))
    result = {name: {str(size): asdict(of) for size, of in curve.items()} for name, curve in curves.items()}
    output.finish(result, lambda: draw_gradients(curves))
    return 0


@contextmanager
def _turns(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar; yields what is called after each turn."""
    with progress_bar("measuring") as show:
        done = count(1)
        yield lambda: show(next(done), total)


def _disagreement(error: DisagreementError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1
