"""The same problems before and after training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from bgrpo.errors import UserError, reading
from bgrpo.evaluation.intervals import Interval, intervals
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.files import readable_file, seal, unseal, write_atomically

_MOST_BYTES = 1 << 30


class ComparisonRow(NamedTuple):
    """One metric before and after training, over the ``problems`` that have it in both; ``difference`` is paired.

    Where checks fail, or a part does not apply, the two have it for different problems, and their means over those
    could not be compared.
    """

    metric: str
    problems: int
    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True)
class EvaluationComparison:
    """The same problems before and after training.

    Raises:
        UserError: the two evaluations are of other problems.
    """

    before: Evaluation
    after: Evaluation
    seed: int = 0

    def __post_init__(self) -> None:
        same_problems = self.before.digest == self.after.digest
        if not same_problems or len(self.before.categories) != len(self.after.categories):
            raise UserError(
                f"evaluations of different problems cannot be compared: {len(self.before.categories)} problems "
                f"({self.before.digest}) before, {len(self.after.categories)} ({self.after.digest}) after"
            )

    def rows(self) -> list[ComparisonRow]:
        """Every metric that both evaluations have."""
        return self._rows

    @cached_property
    def _rows(self) -> list[ComparisonRow]:
        found: dict[tuple[str, str], list[float]] = {}
        problems = {}
        for name in (name for name in self.before.values if name in self.after.values):
            pairs = zip(self.before.values[name], self.after.values[name], strict=True)
            both = [pair if not any(map(math.isnan, pair)) else (math.nan, math.nan) for pair in pairs]
            problems[name] = sum(not math.isnan(before) for before, _ in both)
            if problems[name]:
                found["before", name] = [before for before, _ in both]
                found["after", name] = [after for _, after in both]
                found["difference", name] = [after - before for before, after in both]
        each = intervals(found, self.seed)
        return [
            ComparisonRow(name, count, each["before", name], each["after", name], each["difference", name])
            for name, count in problems.items()
            if count
        ]

    def save(self, path: Path) -> None:
        """Write both evaluations and the table of means and intervals as JSON, with a checksum."""
        table = {
            row.metric: {
                "before": list(row.before),
                "after": list(row.after),
                "difference": list(row.difference),
                "problems": row.problems,
            }
            for row in self.rows()
        }
        tree = {"table": table, "seed": self.seed, "before": self.before.to_dict(), "after": self.after.to_dict()}
        write_atomically(path, seal(json.dumps(tree)) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            UserError: missing, or not such a file, or not as it was written.
        """
        with reading(f"{path}: not an evaluation of a run"):
            tree = json.loads(unseal(readable_file(path, _MOST_BYTES).read_bytes()))
            seed = abs(int(tree["seed"])) % 2**32  # of the intervals
            return cls(Evaluation.from_dict(tree["before"]), Evaluation.from_dict(tree["after"]), seed)
