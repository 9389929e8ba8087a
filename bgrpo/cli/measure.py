"""What the commands that measure a policy do: evaluate, decode, report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bgrpo.cli.task_options import load_problems
from bgrpo.config import TrainConfig, load_config
from bgrpo.display.terminal import PlainConsole, progress_bar, table_console
from bgrpo.errors import UserError
from bgrpo.files import atomic_file, check_target
from bgrpo.groups import Completion
from bgrpo.runs.redaction import remember_secrets_in
from bgrpo.scoring.failed_checks import describe_failures, first_details, truncation
from bgrpo.settings.messages import shown
from bgrpo.tasks.base import Problem, Task, load_task
from bgrpo.tasks.splits import load_test, place_of_split
from bgrpo.waits import LIBRARIES, waiting

SHOWN_RANKS = (1, 2, 3, 5, 10, 15, 25, 50, 100)

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy

MAX_NEW_TOKENS = 64  # answers of a data file may be long


@dataclass(frozen=True, slots=True)
class Decoding:
    """How ``evaluate`` and ``decode`` decode and judge.

    Attributes:
        policy: ``shipped``, a directory, or a model id.
        config: says what the task is and how completions are judged.
        max_new_tokens: longest answer.
        threads: of torch; 0: one per core.
    """

    policy: str
    config: TrainConfig
    max_new_tokens: int
    threads: int

    @classmethod
    def chosen(
        cls, policy: str, config: str | None, overrides: Sequence[str], max_new_tokens: int | None, threads: int
    ) -> Decoding:
        """What a command line asks for; without a configuration, answers may have 64 tokens.

        Raises:
            UserError: a key that an option gives too, which alone would count.
        """
        refuse_both({"policy.path": "--policy NAME"}, overrides)
        if max_new_tokens is not None:
            refuse_both({"rollout.max_new_tokens": "--max-new-tokens"}, overrides)
        loaded = load_config(TrainConfig, config, overrides)
        remember_secrets_in(loaded.model_dump(mode="json"))
        says = config is not None or "max_new_tokens" in loaded.rollout.model_fields_set
        default = loaded.rollout.max_new_tokens if says else MAX_NEW_TOKENS
        return cls(policy, loaded, max_new_tokens or default, threads)

    def task(self) -> Task:
        """The configuration's task."""
        return load_task(self.config.task.name, self.config.task.options)


def refuse_both(options: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Refuse overrides in whose place options count.

    Args:
        options: key -> the option.
        overrides: ``key.path=value`` each.
    """
    for text in overrides:
        if option := options.get(text.partition("=")[0].strip()):
            raise UserError(f"{shown(text)}: {option} says that here: leave {shown(text)} out")


def evaluate_policy(
    decoding: Decoding,
    data: Path | None,
    limit: int | None,
    beam_widths: Sequence[int] | None,
    samples: int | None,
    seed: int | None,
    as_json: bool,
) -> int:
    """Print a policy's metrics on a data file, or on the configuration's test problems.

    Widths, samples and seed that are None are the configuration's, as in the table that ends its run.
    """
    from bgrpo.display.run_report import evaluation_tables
    from bgrpo.evaluation.metrics import Measures, evaluate

    task, section = decoding.task(), decoding.config.evaluation
    widths = beam_widths or section.beam_widths
    samples = section.samples if samples is None else samples
    seed = decoding.config.seed if seed is None else seed
    problems, notes = load_test(task, decoding.config.task) if data is None else (load_problems(task, data), [])
    for note in notes:
        print(note, file=sys.stderr)
    problems = first_problems(problems, limit, "--problems", data)
    started = time.monotonic()
    where = place_of_split(task, decoding.config.task, "test") if data is None else str(data)
    with _decoder(decoding, problems, where) as (decode, problems), progress_bar("evaluating") as show:
        evaluation = evaluate(decode, problems, widths, samples, seed, Measures.of(decoding.config), on_progress=show)
    say_truncated(evaluation.totals(), decoding)
    if as_json:
        result = {
            "policy": decoding.policy,
            "problems": len(problems),
            "metrics": {name: interval._asdict() for name, interval in evaluation.intervals(seed).items()},
            "by_category": evaluation.by_category(),
            "outcomes": evaluation.outcomes,
            "failed_checks": evaluation.failures(),
            "solved_within": evaluation.solved_within(),
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(result))
        return 0
    console = table_console()
    for table in evaluation_tables(evaluation, f"policy {decoding.policy}"):
        console.print(table)
    for width, shares in evaluation.solved_within().items():
        ks = sorted({k for k in SHOWN_RANKS if k < len(shares)} | {len(shares)})
        solved = " · ".join(f"{k}: {shares[k - 1]:.1%}" for k in ks)
        console.print(f"solved by the best k of the search of width {width}: {solved}", soft_wrap=True)
    for line in evaluation.failures():
        console.print(line, soft_wrap=True, markup=False)
    return 0


def decode_file(
    decoding: Decoding, data: Path, out: Path, beam_width: int, limit: int | None, batch: int, overwrite: bool
) -> int:
    """Write one JSON line per problem with its beams, complete or not at all."""
    check_target(out, "--out", overwrite=overwrite)
    problems = first_problems(load_problems(decoding.task(), data), limit, "--limit", data)
    outcomes: Counter[str] = Counter()
    details: dict[str, str] = {}
    tried = _decoder(decoding, problems, str(data))
    with tried as (decode, problems), progress_bar("decoding") as show, written(out) as file:
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            for problem, group in zip(part, decode(part, "beam", beam_width, None), strict=True):
                outcomes.update(completion.outcome for completion in group)
                details = first_details(group) | details
                completions = [_json_of(rank, completion) for rank, completion in enumerate(group, start=1)]
                line = {"prompt": problem.prompt, "completions": completions}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            show(start + len(part), len(problems))
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{out}: {len(problems):,} problems, {outcomes.total():,} completions: {counts}", file=sys.stderr)
    for failure in describe_failures(outcomes, details):
        print(f"warning: {failure}", file=sys.stderr)
    say_truncated(outcomes, decoding)
    return 0


def first_problems(problems: list[Problem], limit: int | None, option: str, data: Path | None) -> list[Problem]:
    """At most ``limit`` problems; says where there are fewer."""
    if limit is not None and limit > len(problems):
        source = data or "the configuration's test split"
        print(f"note: {source} has {len(problems):,} problems, fewer than {option} {limit}", file=sys.stderr)
    return problems[:limit]


def say_truncated(outcomes: Mapping[str, int], decoding: Decoding) -> None:
    """Warn where many completions were cut off."""
    scored = decoding.config.reward.scores_truncated
    if line := truncation(outcomes, decoding.max_new_tokens, "--max-new-tokens", scored):
        print(f"warning: {line}", file=sys.stderr)


def _json_of(rank: int, completion: Completion) -> dict[str, Any]:
    return {
        "rank": rank,
        "tokens": completion.tokens,
        "text": completion.text,
        "logprob": completion.logprob,
        "finished": completion.finished,
        "outcome": completion.outcome,
    } | ({"detail": completion.verdict.detail} if completion.verdict and completion.verdict.detail else {})


def rebuild_report(name: str, runs: Path, as_json: bool) -> int:
    """Write a sweep's or a run's report from its folder, and print what it says and where it is."""
    from rich.table import Table

    from bgrpo.runs.run_folder import RunFolder
    from bgrpo.sweep.report.sweep_records import is_sweep, read_sweep
    from bgrpo.sweep.report.sweep_report import find_folder, finite, summary_tree, write_run_report, write_sweep_report
    from bgrpo.sweep.report.sweep_summary import summarize

    folder = find_folder(name, runs)
    result: dict[str, Any] = {}
    lines: list[str] = []
    parts: Table | None = None
    with PlainConsole(stderr=True).status("drawing"):
        if is_sweep(folder):
            summary = summarize(read_sweep(folder))
            path, result = write_sweep_report(summary), summary_tree(summary)
            lines = summary.verdict.lines()
        else:
            path, lines, parts = write_run_report(RunFolder(folder.resolve()))
            result = {"conclusions": lines}
    if as_json:
        print(json.dumps({"report": str(path)} | finite(result)))
        return 0
    console = PlainConsole()
    if parts is not None:
        console.print(parts)
    for line in [*lines, f"report: {path}"]:
        console.print(line, soft_wrap=True)
    return 0


@contextmanager
def _decoder(decoding: Decoding, problems: list[Problem], where: str) -> Iterator[tuple[Any, list[Problem]]]:
    """A local decoder with its judge's process, both tried on the problems, and the problems that it can read."""
    from bgrpo.training.measuring import judged_decoder

    policy, longest = load_decoding_policy(decoding), decoding.max_new_tokens
    with judged_decoder(policy, decoding.config, problems, longest, where, "--max-new-tokens", tell) as found:
        yield found


def load_decoding_policy(decoding: Decoding) -> LoadedPolicy:
    """The policy, checked, with a line on standard error where it takes the plain path; sets torch's threads."""
    with waiting(LIBRARIES):
        import torch

        from bgrpo.decoding.support import service_of
        from bgrpo.runs.preparation import check_policy

    torch.set_num_threads(decoding.threads or len(os.sched_getaffinity(0)))
    rollout = decoding.config.rollout
    policy = check_policy(decoding.policy, rollout.engine, rollout.dtype)
    if note := service_of(policy.model, rollout.engine).note:
        tell(note)
    return policy


def tell(line: str) -> None:
    """Say something on standard error."""
    print(line, file=sys.stderr)


@contextmanager
def written(out: Path, option: str = "--out") -> Iterator[TextIO]:
    """A text file that is complete or absent; where it cannot be written, one line says so."""
    try:
        with atomic_file(out) as file:
            yield file
    except OSError as error:
        raise UserError(f"{option} {out}: cannot be written ({error.strerror or error})") from error
