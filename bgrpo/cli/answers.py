"""``bgrpo evaluate --answers``: a policy's answers in a file, and what they come to."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from bgrpo.cli.measure import Decoding, first_problems, load_decoding_policy, say_truncated, tell, written
from bgrpo.cli.task_options import load_problems
from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.evaluation.answer_metrics import MeasuredAnswer, answer_metrics
from bgrpo.evaluation.intervals import Interval
from bgrpo.files import check_target
from bgrpo.groups import Completion
from bgrpo.runs.prompt_lengths import fit_prompts
from bgrpo.tasks.base import Outcome, Problem
from bgrpo.tasks.splits import load_test, place_of_split
from bgrpo.training.answering import answer_problems


def evaluate_answers(
    decoding: Decoding, data: Path | None, limit: int | None, out: Path, overwrite: bool, as_json: bool
) -> int:
    """Write one JSON line per problem, with its passages, complete or not at all; then print the metrics."""
    check_target(out, "--answers", overwrite=overwrite)
    task, section = decoding.task(), decoding.config.task
    problems, notes = load_test(task, section) if data is None else (load_problems(task, data), [])
    for note in notes:
        tell(note)
    problems = first_problems(problems, limit, "--problems", data)
    where = place_of_split(task, section, "test") if data is None else str(data)
    policy, longest = load_decoding_policy(decoding), decoding.max_new_tokens
    fitted = fit_prompts(problems, policy, decoding.config.rollout, where, longest, "--max-new-tokens")
    if fitted.note:
        tell(fitted.note)
    measured: list[MeasuredAnswer] = []
    cut_off = 0
    with progress_bar("answering") as show, written(out, "--answers") as file:
        found = answer_problems(policy, decoding.config, fitted.problems, longest, where, show)
        for problem, completion, answer in found:
            file.write(json.dumps(_line(problem, completion, answer), ensure_ascii=False) + "\n")
            measured.append(answer)
            cut_off += not completion.finished
    say_truncated({Outcome.TRUNCATED: cut_off, Outcome.SCORED: len(measured) - cut_off}, decoding)
    metrics = answer_metrics(measured, decoding.config.seed)
    if as_json:
        tree = {name: _plain(interval) for name, interval in metrics.items()}
        print(json.dumps({"policy": decoding.policy, "problems": len(measured), "metrics": tree}))
        return 0
    table = Table(title=f"policy {decoding.policy}", caption=f"{len(measured)} problems, 95 % bootstrap intervals")
    table.add_column("metric")
    table.add_column("value", justify="right", no_wrap=True)
    for name, interval in metrics.items():
        text = f"{interval.mean:.4g}"
        table.add_row(name, text if math.isnan(interval.low) else f"{text} [{interval.low:.4g}, {interval.high:.4g}]")
    table_console().print(table)
    print(f"{out}: {len(measured):,} answers", file=sys.stderr)
    return 0


def _plain(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}


def _line(problem: Problem, completion: Completion, answer: MeasuredAnswer) -> dict[str, Any]:
    """What is written of a problem."""
    fields = problem.fields
    return {
        "id": fields.get("id"),
        "prompt": problem.prompt or [dict(message) for message in problem.messages],
        "answers": list(answer.answers),
        "generation": completion.text,
        "finished": completion.finished,
        "logprob": completion.logprob,
        "passages": fields.get("passages") or list(problem.passages),
        "known_logprob": answer.known_logprob,
        "known_tokens": answer.known_tokens,
    } | answer.metrics()
