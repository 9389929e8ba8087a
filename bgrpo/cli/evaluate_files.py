"""What ``bgrpo evaluate`` does with several data files, two policies, or a folder to write to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from bgrpo.cli.measure import Decoding, first_problems, load_decoding_policy, say_truncated, tell
from bgrpo.cli.task_options import load_problems
from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.errors import UserError
from bgrpo.evaluation.decode_journal import Journal, journaled
from bgrpo.evaluation.many_files import MeasuredFile, as_csv, as_tree, by_cell
from bgrpo.evaluation.metrics import Evaluation, Measures, evaluate
from bgrpo.files import write_atomically
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.same_input import policy_digest
from bgrpo.tasks.base import Problem, Task
from bgrpo.tasks.data_streams import grid_of, quantities_of
from bgrpo.training.measuring import judged_decoder

RESULTS, TABLE, PICTURE, DECODED = "evaluation.json", "table.csv", "degrees.png", "decoded"
_SAVED_DATA_SET = ("state.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure of every file.

    Attributes:
        widths: of beam@k.
        samples: of each problem.
        seed: of the samples and the intervals.
        limit: most problems of a file.
    """

    widths: Sequence[int]
    samples: int
    seed: int
    limit: int | None


def files_of(data: Sequence[Path]) -> list[Path]:
    """The files named, and those in folders, in the order of their names; a data set's own folder is one file.

    Raises:
        UserError: a folder without files.
    """
    found: list[Path] = []
    for path in data:
        if path.is_dir() and not any((path / name).exists() for name in _SAVED_DATA_SET):
            inside = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
            inside = [each for each in inside if each.suffix.lower() not in (".md", ".png", ".html", ".yaml")]
            if not inside:
                raise UserError(f"--data {path}: is a folder without data files")
            found += inside
        else:
            found.append(path)
    return found


def evaluate_files(
    decoding: Decoding,
    before: str | None,
    data: Sequence[Path],
    asked: Asked,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Print one table of all files, and write it with JSON, CSV and a picture into a folder, where one is named."""
    task, paths = decoding.task(), files_of(data)
    if out is not None:
        _prepare(out, overwrite)
    names = _different_names(paths)
    problems = [first_problems(load_problems(task, path), asked.limit, "--problems", path) for path in paths]
    policies = [decoding] if before is None else [replace(decoding, policy=before), decoding]
    loaded = [load_decoding_policy(each) for each in policies]
    with _journal(out, decoding, asked, loaded) as journal, progress_bar("evaluating") as show:
        done, files = 0, []
        total = len(policies) * sum(map(len, problems))
        for path, name, of_file in zip(paths, names, problems, strict=True):
            found = []
            for policy in loaded:

                def moved(now: int, of: int, start: int = done, size: int = len(of_file)) -> None:
                    show(start + now * size // max(1, of), total)

                found.append(_measure(policy, decoding, path, of_file, asked, journal, moved))
                done += len(of_file)
            readable = found[-1][1]
            files.append(MeasuredFile(name, readable, found[-1][0], found[0][0] if before is not None else None))
        cells = _cells(task, files, asked.seed)
        tree = {
            "policy": decoding.policy,
            "before": before,
            "temperature": decoding.config.evaluation.temperature,
            "seed": asked.seed,
            "files": as_tree(files, asked.seed),
        } | _cell_tree(cells)
        if out is not None:
            write_atomically(out / TABLE, as_csv(files, asked.seed))
            _draw(task, files, cells, decoding.policy, out)
            write_atomically(out / RESULTS, json.dumps(tree) + "\n")
    if journal is not None and journal.recalled:
        tell(f"note: {journal.recalled:,} of the decoded problems had been decoded before")
    for file in files:
        say_truncated(file.after.totals(), decoding)
    if as_json:
        print(json.dumps(tree))
        return 0
    table_console().print(_table(files, f"policy {decoding.policy}" + (f", before: {before}" if before else "")))
    if out is not None:
        print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


def _measure(
    policy: LoadedPolicy,
    decoding: Decoding,
    path: Path,
    problems: list[Problem],
    asked: Asked,
    journal: Journal | None,
    moved: Any,
) -> tuple[Evaluation, list[Problem]]:
    """The evaluation, and the problems that the policy can read."""
    config, longest = decoding.config, decoding.max_new_tokens
    tried = judged_decoder(policy, config, problems, longest, str(path), "--max-new-tokens", tell)
    with tried as (decoder, readable):
        decode = decoder if journal is None else journal.over(decoder)
        measures = Measures.of(config)
        found = evaluate(decode, readable, asked.widths, asked.samples, asked.seed, measures, on_progress=moved)
    return found, readable


@contextmanager
def _journal(
    out: Path | None, decoding: Decoding, asked: Asked, policies: Sequence[LoadedPolicy]
) -> Iterator[Journal | None]:
    """What was decoded so far, in the folder; None where there is no folder."""
    if out is None:
        yield None
        return
    config = decoding.config
    of = {
        "policies": [policy_digest(policy) for policy in policies],
        "max_new_tokens": decoding.max_new_tokens,
        "task": [config.task.name, config.task.options],
        "reward": config.reward.model_dump(mode="json"),
        "rollout": config.rollout.model_dump(mode="json"),
        "temperature": config.evaluation.temperature,
        "widths": list(asked.widths),
        "samples": asked.samples,
    }
    with journaled(out / DECODED, of) as journal:
        yield journal


def _prepare(out: Path, overwrite: bool) -> None:
    """Make the folder; refuse one that holds anything but what an interrupted command left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made or read as a folder ({error.strerror})") from error
    ours = {RESULTS, TABLE, PICTURE, DECODED}
    if foreign := [name for name in there if name not in ours]:
        raise UserError(f"--out {out}: holds {foreign[0]!r}, which is no result of this command: name another folder")
    if RESULTS in there and not overwrite:
        raise UserError(f"--out {out}: holds results already; give another name, or --overwrite to replace them")


def _different_names(paths: Sequence[Path]) -> list[str]:
    """File names, or whole paths where two files have one name."""
    short = [path.name for path in paths]
    if len(set(paths)) < len(paths):
        raise UserError(f"--data: {max(paths, key=list(paths).count)} is named twice")
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _shown_metrics(files: Sequence[MeasuredFile]) -> list[str]:
    """Columns of the table: of beam@k and pass@k the largest, and what else fits."""
    names = [name for name in files[0].after.values if all(name in each.after.values for each in files)]

    def widest(family: str) -> str:
        return max((n for n in names if n.startswith(family)), key=lambda n: int(n.partition("@")[2]), default="")

    wanted = ("greedy", widest("beam@"), "beam_rank_score", widest("pass@"), "oracle", "greedy_reward", "sample_reward")
    return [name for name in wanted if name in names]


def _table(files: Sequence[MeasuredFile], title: str) -> Table:
    from bgrpo.display.run_report import is_fraction, metric_label

    shown = _shown_metrics(files)
    table = Table(title=title)
    table.add_column("file")
    table.add_column("problems", justify="right")
    for name in shown:
        table.add_column(metric_label(name), justify="right", no_wrap=True)
    for file in files:
        cells = []
        for name in shown:
            form = ".1%" if is_fraction(name) else ".3f"
            cells.append(" → ".join(format(each.metrics()[name], form) for _, each in file.policies()))
        table.add_row(file.name, f"{len(file.problems):,}", *cells)
    return table


def _cells(task: Task, files: Sequence[MeasuredFile], seed: int) -> dict[str, Any]:
    """Metric -> policy -> cell of the task's grid -> mean and interval; empty for a task without a grid."""
    axes = grid_of(task)
    if axes is None:
        return {}
    rows, columns = axes
    _, quantify = quantities_of(task)

    def cell_of(problem: Problem) -> tuple[int, int] | None:
        found = quantify(problem)
        return (found[rows], found[columns]) if rows in found and columns in found else None

    metrics = [name for name in _shown_metrics(files) if name == "greedy" or name.startswith(("beam@", "pass@"))]
    found = {metric: by_cell(files, metric, cell_of, seed) for metric in metrics}
    return found if all(found.values()) else {}


def _cell_tree(cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "by_degrees": {
            metric: {
                policy: [[*cell, *interval] for cell, interval in of_policy.items()]
                for policy, of_policy in policies.items()
            }
            for metric, policies in cells.items()
        }
    }


def _draw(task: Task, files: Sequence[MeasuredFile], cells: dict[str, Any], policy: str, out: Path) -> None:
    axes = grid_of(task)
    if axes is None or not cells:
        tell(f"note: no heat map: these problems have no {' and '.join(axes or ('rows', 'columns'))}")
        return
    from bgrpo.display.degree_picture import draw_cells

    draw_cells(cells, axes, sum(len(file.problems) for file in files), f"policy {policy}", out / PICTURE)
