"""One policy on many data files, or two policies on the same: what tables and pictures over them are made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bgrpo.evaluation.comparison import ComparisonRow, EvaluationComparison
from bgrpo.evaluation.intervals import Interval, intervals
from bgrpo.evaluation.metrics import REPEATED, Evaluation
from bgrpo.tasks.base import Problem

Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """What was measured on a file.

    Attributes:
        name: of the file, unlike every other.
        problems: in order.
        after: of the policy.
        before: of the policy that it is compared with.
    """

    name: str
    problems: list[Problem]
    after: Evaluation
    before: Evaluation | None = None

    def policies(self) -> Iterator[tuple[str, Evaluation]]:
        """``before`` and ``after``, or ``policy`` alone."""
        if self.before is not None:
            yield "before", self.before
        yield ("after" if self.before is not None else "policy"), self.after

    def compared(self, seed: int) -> list[ComparisonRow]:
        """Before and after, of every metric, over the problems that have it in both."""
        return [] if self.before is None else EvaluationComparison(self.before, self.after, seed).rows()


def as_tree(files: Sequence[MeasuredFile], seed: int) -> list[dict[str, Any]]:
    """Each file's metrics with intervals, by category, its outcomes and how many problems the best k beams solve."""
    found = []
    for file in files:
        tree: dict[str, Any] = {"file": file.name, "problems": len(file.problems)}
        for name, evaluation in file.policies():
            tree[name] = {
                "metrics": {metric: each._asdict() for metric, each in evaluation.intervals(seed).items()},
                "by_category": evaluation.by_category(),
                "outcomes": evaluation.outcomes,
                "solved_within": evaluation.solved_within(),
                "failed_checks": evaluation.failures(),
            }
        if rows := file.compared(seed):
            tree["difference"] = {row.metric: row.difference._asdict() for row in rows}
        found.append(tree)
    return found


def as_csv(files: Sequence[MeasuredFile], seed: int) -> str:
    """One line for each file, policy, category (empty: all) and metric: problems, mean, where known the interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "policy", "category", "problems", "metric", "mean", "low", "high"])
    for file in files:
        for name, evaluation in file.policies():
            for metric, each in evaluation.intervals(seed).items():
                if metric != REPEATED:
                    writer.writerow([file.name, name, "", evaluation.known(metric), metric, *map(_number, each)])
            for category, row in evaluation.by_category().items():
                problems = row["problems"]
                for metric in evaluation.values:
                    if category and metric != REPEATED:
                        writer.writerow([file.name, name, category, problems, metric, _number(row[metric]), "", ""])
        for pair in file.compared(seed):
            if pair.metric != REPEATED:
                numbers = map(_number, pair.difference)
                writer.writerow([file.name, "difference", "", pair.problems, pair.metric, *numbers])
    return text.getvalue()


def by_cell(
    files: Sequence[MeasuredFile], metric: str, cell_of: Callable[[Problem], Cell | None], seed: int
) -> dict[str, dict[Cell, Interval]]:
    """``before`` and ``after``, or ``policy`` -> cell of the grid -> the metric over all files' problems there."""
    values: dict[str, dict[Cell, list[float]]] = {}
    for file in files:
        cells = [cell_of(problem) for problem in file.problems]
        for name, evaluation in file.policies():
            for cell, value in zip(cells, evaluation.values[metric], strict=True):
                if cell is not None:
                    values.setdefault(name, {}).setdefault(cell, []).append(value)
    return {
        name: {cell: intervals({metric: column}, seed)[metric] for cell, column in sorted(columns.items())}
        for name, columns in values.items()
    }


def _number(value: float) -> str:
    return f"{value:.6g}"
