"""What the commands of ``bgrpo`` do, apart from training. Each returns the exit status."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count as count_from
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bgrpo.config import SHIPPED_CONFIGS, PretrainConfig, TaskSection, TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.files import atomic_file, check_target
from bgrpo.run_folder import load_run_config
from bgrpo.tasks.base import Outcome, Problem, Task, load_task
from bgrpo.terminal import table_console

CHECK_LIMIT_S = 5.0
MAX_NEW_TOKENS = 64  # answers of a data file may be long
RINGS = ("ZZ", "QQ")
STATUS_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How ``evaluate`` and ``decode`` decode and check.

    Attributes:
        policy: ``shipped``, a directory, or a model id.
        ring: of the outer polynomials, ``ZZ`` or ``QQ``.
        max_new_tokens: longest answer; None: what the configuration says, or 64 for a data file.
        threads: of torch; 0: one per core.
    """

    policy: str
    ring: str
    max_new_tokens: int | None
    threads: int


@dataclass(frozen=True, slots=True)
class GeneratorRequest:
    """What ``generate-data`` was asked for; see ``bgrpo generate-data --help``."""

    degrees: list[str]
    coefficients: int
    kind: str
    variables: int | None
    leading: str
    exclude: list[Path]


def train_policy(config: str | None, overrides: list[str], resume: str | None, as_json: bool) -> int:
    """Reinforcement learning. Mistakes in the configuration are told before the slow imports."""
    load_run_config(TrainConfig, config, overrides, resume)
    from bgrpo.distributed.train.run import run_from_command_line

    return run_from_command_line(config, overrides, resume, as_json)


def pretrain_policy(config: str | None, overrides: list[str], resume: str | None) -> int:
    """Supervised training. Mistakes in the configuration are told before the slow imports."""
    load_run_config(PretrainConfig, config, overrides, resume)
    from bgrpo.distributed.train.pretrain import run_from_command_line

    return run_from_command_line(config, overrides, resume)


def sweep_arms(config: str | None, overrides: list[str], resume: str | None, retry_failed: bool, as_json: bool) -> int:
    """Compare algorithms. Mistakes in the configuration are told before the slow imports."""
    from bgrpo.sweep.folder import load_new_sweep, load_resumed_sweep

    if resume is None:
        load_new_sweep(config, overrides)
    else:
        load_resumed_sweep(resume, overrides)
    from bgrpo.distributed.sweep.run import sweep_from_command_line

    return sweep_from_command_line(config, overrides, resume, retry_failed, as_json)


def submit_training(address: str, config: str | None, overrides: list[str], resume: str | None, as_json: bool) -> int:
    """Send a training run to a cluster and follow its log. What can be checked here is, before anything is sent."""
    if resume is None:
        load_config(TrainConfig, config, overrides)
    return _submit(address, "ray_jobs.train", config, overrides, resume, as_json)


def submit_sweep(
    address: str, config: str | None, overrides: list[str], resume: str | None, retry_failed: bool, as_json: bool
) -> int:
    """Send a sweep to a cluster and follow its log. What can be checked here is, before anything is sent."""
    from bgrpo.sweep.config import SweepConfig
    from bgrpo.sweep.trials import TrialConfigs

    if resume is None:
        sweep = load_config(SweepConfig, config, overrides)
        TrialConfigs(sweep, Path(sweep.run.dir)).check()
    flags = ["--retry-failed"] if retry_failed else []
    return _submit(address, "ray_jobs.sweep", config, [*flags, *overrides], resume, as_json)


def _submit(
    address: str, module: str, config: str | None, overrides: list[str], resume: str | None, as_json: bool
) -> int:
    from bgrpo.distributed.cluster.submit import refuse_credentials, submit

    refuse_credentials(overrides, "command line")
    if config is not None and Path(config).is_file():
        refuse_credentials(Path(config).read_text("utf-8").splitlines(), config)
    arguments = [] if config is None else ["--config", _portable_config(config)]
    arguments += [] if resume is None else ["--resume", resume]
    log = sys.stderr if as_json else sys.stdout
    jobs: list[str] = []

    def announce(job: str) -> None:
        jobs.append(job)
        print(f"job {job} on {address}; stop it with: ray job stop --address {address} {job}", file=log, flush=True)

    def write(text: str) -> None:
        print(text, end="", file=log, flush=True)

    status = submit(address, module, [*arguments, *overrides], announce, write)
    if as_json:
        print(json.dumps({"job": jobs[0], "address": address, "exit_status": status}))
    return status


def evaluate_policy(
    decoding: Decoding,
    data: Path | None,
    config: str,
    limit: int | None,
    beam_widths: Sequence[int],
    samples: int,
    seed: int,
    as_json: bool,
) -> int:
    """Print a policy's metrics on a data file, or on a configuration's test problems."""
    from bgrpo.evaluation import evaluate
    from bgrpo.report import evaluation_tables

    if data is None:
        chosen = load_config(TrainConfig, config)
        section, longest = chosen.task, chosen.rollout.max_new_tokens
        problems = _test_problems(section)[:limit]
    else:
        section, longest = _polynomial_section(decoding.ring), MAX_NEW_TOKENS
        problems = _load(load_task(section.name, section.options), data)[:limit]
    started = time.monotonic()
    with _decoder(decoding, section, longest) as decode, _bar("evaluating") as show:
        evaluation = evaluate(decode, problems, beam_widths, samples, seed, on_progress=show)
    if as_json:
        result = {
            "policy": decoding.policy,
            "problems": len(problems),
            "metrics": {name: interval._asdict() for name, interval in evaluation.intervals(seed).items()},
            "by_category": evaluation.by_category(),
            "outcomes": evaluation.outcomes,
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(result))
        return 0
    console = table_console()
    for table in evaluation_tables(evaluation, f"policy {decoding.policy}"):
        console.print(table)
    return 0


def decode_file(decoding: Decoding, data: Path, out: Path, beam_width: int, limit: int | None, batch: int) -> int:
    """Write one JSON line per problem with its beams, complete or not at all."""
    check_target(out, "--out")
    section = _polynomial_section(decoding.ring)
    problems = _load(load_task(section.name, section.options), data)[:limit]
    with _decoder(decoding, section, MAX_NEW_TOKENS) as decode, _bar("decoding") as show, _written(out) as file:
        for start in range(0, len(problems), batch):
            prompts = [problem.prompt for problem in problems[start : start + batch]]
            for prompt, group in zip(prompts, decode(prompts, "beam", beam_width, None), strict=True):
                completions = [{"rank": i + 1} | asdict(completion) for i, completion in enumerate(group)]
                line = {"prompt": prompt, "completions": completions}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            show(start + len(prompts), len(problems))
    return 0


def verify_data(data: Path, ring: str, as_json: bool) -> int:
    """Print what every line's own answer is."""
    from bgrpo.tasks.polynomial.files import verify_file

    with _bar("checking") as show:
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
    with _bar("generating") as show:
        generate_file(drawn, count, seed, out, workers, progress=lambda done: show(done, count), exclude=exclude)
    rate = count / (time.monotonic() - started)
    print(f"{out}: {count:,} problems, {rate:,.0f} per second", file=sys.stderr)
    return 0


def rebuild_report(name: str, runs: Path, as_json: bool) -> int:
    """Write a sweep's or a run's report from its folder, and print what it says and where it is."""
    from bgrpo.run_folder import RunFolder
    from bgrpo.sweep.exports import finite, summary_tree
    from bgrpo.sweep.records import is_sweep, read_sweep
    from bgrpo.sweep.report import find_folder, write_report_of, write_run_report
    from bgrpo.sweep.summary import summarize

    folder = find_folder(name, runs)
    result: dict[str, Any] = {}
    lines: list[str] = []
    with Console(stderr=True).status("drawing"):
        if is_sweep(folder):
            summary = summarize(read_sweep(folder))
            path, result = write_report_of(summary), summary_tree(summary)
            lines = [summary.verdict.headline, *summary.verdict.sentences, *summary.verdict.cautions]
        else:
            path = write_run_report(RunFolder(folder.resolve()))
    if as_json:
        print(json.dumps({"report": str(path)} | finite(result)))
        return 0
    console = Console(highlight=False)
    for line in [*lines, f"report: {path}"]:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def examine_machine(runs: Path, with_ray: bool, as_json: bool) -> int:
    """Print each finding of the doctor as it comes; 1 when training cannot work."""
    from bgrpo.doctor import diagnose

    console = Console(stderr=as_json, highlight=False)
    checks = []
    with console.status("looking"):
        for check in diagnose(runs, with_ray):
            checks.append(check)
            style = STATUS_STYLES[check.status]
            advice = f"\n     → {check.advice}" if check.advice else ""
            console.print(f"[{style}]{check.status:4}[/] ", end="")
            console.print(f"{check.name}: {check.detail}{advice}", markup=False, soft_wrap=True)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    return 1 if failed else 0


def measure_task(seconds: float, as_json: bool) -> int:
    """Print the speed of the check and of the generator."""
    from bgrpo.bench.task import run

    with Console(stderr=True).status("measuring"):
        result = run(seconds)
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
    with _bar("measuring") as show:
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
    from bgrpo.bench import scaling
    from bgrpo.bench.machine import describe_machine
    from bgrpo.distributed.rollout.scaling_costs import measure

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
    with _bar("measuring") as show:
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


@contextmanager
def _decoder(decoding: Decoding, section: TaskSection, longest: int) -> Iterator[Any]:
    """A local decoder with its check process."""
    import torch

    from bgrpo.evaluation import LocalDecoder
    from bgrpo.policies.io import load_policy
    from bgrpo.verification import CheckProcess

    torch.set_num_threads(decoding.threads or len(os.sched_getaffinity(0)))
    policy = load_policy(decoding.policy)
    with CheckProcess(f"task:{section.name}", section.options, CHECK_LIMIT_S) as checks:
        yield LocalDecoder(policy, checks, decoding.max_new_tokens or longest)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal's standard error, gone when done; yields what moves it: (done, total)."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def _written(out: Path) -> Iterator[Any]:
    try:
        with atomic_file(out) as file:
            yield file
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _polynomial_section(ring: str) -> TaskSection:
    return load_config(TaskSection, None, [f"options.ring={_checked_ring(ring)}"])


def _checked_ring(ring: str) -> Any:
    if ring not in RINGS:
        raise UserError(f"--ring {ring}: expected one of {', '.join(RINGS)}")
    return ring


def _test_problems(section: TaskSection) -> list[Problem]:
    """The test split, which does not depend on the other splits."""
    task, source = load_task(section.name, section.options), section.test
    if source.file is not None:
        return _load(task, Path(source.file))[: source.count]
    return task.generate(source.options, source.count, source.seed)


def _load(task: Task, path: Path) -> list[Problem]:
    """Problems of a file; says on standard error how many lines' own answers are not correct."""
    loaded = task.load(path)
    bad = {name: count for name, count in loaded.outcomes.items() if count and name != Outcome.CORRECT}
    if bad:
        found = ", ".join(f"{count} {name}" for name, count in bad.items())
        total = sum(loaded.outcomes.values())
        print(f"note: {path}: own answers of {total} lines: {found}; trivial problems are left out", file=sys.stderr)
    return loaded.problems


def _parse_degrees(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--degrees {text}: expected OUTER,INNER, for example 2,3")
    return [int(part) for part in parts]


def _portable_config(config: str) -> str:
    """A configuration's name, or its path relative to the folder that is sent to the cluster."""
    path = Path(config)
    if not path.is_file() or path.resolve().parent == SHIPPED_CONFIGS:
        return path.stem if path.is_file() else config
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"--config {config}: lies outside the current folder, which is what --submit sends; copy it here"
        ) from None
