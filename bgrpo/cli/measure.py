"""What the commands that measure a policy do: evaluate, decode, report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bgrpo.config import TaskSection, TrainConfig, load_config
from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.errors import UserError
from bgrpo.files import atomic_file, check_target
from bgrpo.tasks.base import Outcome, Problem, Task, load_task

CHECK_LIMIT_S = 5.0


MAX_NEW_TOKENS = 64  # answers of a data file may be long


RINGS = ("ZZ", "QQ")


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
    from bgrpo.display.run_report import evaluation_tables
    from bgrpo.evaluation.metrics import evaluate

    if data is None:
        chosen = load_config(TrainConfig, config)
        section, longest = chosen.task, chosen.rollout.max_new_tokens
        problems = _test_problems(section)[:limit]
    else:
        section, longest = _polynomial_section(decoding.ring), MAX_NEW_TOKENS
        problems = _load(load_task(section.name, section.options), data)[:limit]
    started = time.monotonic()
    with _decoder(decoding, section, longest) as decode, progress_bar("evaluating") as show:
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
    with _decoder(decoding, section, MAX_NEW_TOKENS) as decode, progress_bar("decoding") as show, _written(out) as file:
        for start in range(0, len(problems), batch):
            prompts = [problem.prompt for problem in problems[start : start + batch]]
            for prompt, group in zip(prompts, decode(prompts, "beam", beam_width, None), strict=True):
                completions = [{"rank": i + 1} | asdict(completion) for i, completion in enumerate(group)]
                line = {"prompt": prompt, "completions": completions}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            show(start + len(prompts), len(problems))
    return 0


def rebuild_report(name: str, runs: Path, as_json: bool) -> int:
    """Write a sweep's or a run's report from its folder, and print what it says and where it is."""
    from bgrpo.runs.folder import RunFolder
    from bgrpo.sweep.report.sweep_records import is_sweep, read_sweep
    from bgrpo.sweep.report.sweep_report import find_folder, finite, summary_tree, write_report_of, write_run_report
    from bgrpo.sweep.report.sweep_summary import summarize

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


@contextmanager
def _decoder(decoding: Decoding, section: TaskSection, longest: int) -> Iterator[Any]:
    """A local decoder with its check process."""
    import torch

    from bgrpo.evaluation.decoders import LocalDecoder
    from bgrpo.policies.io import load_policy
    from bgrpo.scoring.check_process import CheckProcess

    torch.set_num_threads(decoding.threads or len(os.sched_getaffinity(0)))
    policy = load_policy(decoding.policy)
    with CheckProcess(f"task:{section.name}", section.options, CHECK_LIMIT_S) as checks:
        yield LocalDecoder(policy, checks, decoding.max_new_tokens or longest)


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
