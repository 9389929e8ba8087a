"""The same problems before and after training."""

from __future__ import annotations

import json
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
    """One metric before and after training; ``difference`` is paired by problem."""

    metric: str
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
        names = [name for name in self.before.values if name in self.after.values]
        columns = {("before", name): self.before.values[name] for name in names}
        columns |= {("after", name): self.after.values[name] for name in names}
        pairs = {name: zip(self.before.values[name], self.after.values[name], strict=True) for name in names}
        columns |= {("difference", name): [after - before for before, after in pairs[name]] for name in names}
        found = intervals(columns, self.seed)
        return [
            ComparisonRow(name, found["before", name], found["after", name], found["difference", name])
            for name in names
        ]

    def save(self, path: Path) -> None:
        """Write both evaluations and the table of means and intervals as JSON, with a checksum."""
        table = {
            row.metric: {key: list(value) for key, value in row._asdict().items() if key != "metric"}
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
