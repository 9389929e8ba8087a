"""The report of a chaos run: what was injected, what became of it, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table

from bgrpo.chaos.comparison import ResultComparison
from bgrpo.chaos.faults import FaultKind
from bgrpo.chaos.memory import FLAT_BYTES_PER_MINUTE, WARM_UP_S, MemoryTrend
from bgrpo.chaos.recovery import FaultRecord

PREEMPTED_STATUS = 143
MIB = 1024**2
FIGURES = ("noticed_s", "replaced_s", "step_s", "redone_steps")


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """One chaos run.

    Attributes:
        seed: of the schedule.
        finished: the disturbed run came to its end.
        failure: why it did not; "" when it did.
        checkpoint_every: steps between its checkpoints.
        steps: of each run.
        seconds: from the first training step of the disturbed run to its end.
        undisturbed_seconds: from the first step of the undisturbed run to its last.
        faults: one record per fault that came up, in order.
        comparison: with the undisturbed run; None when the disturbed one did not finish.
        memory: one trend per role.
        left_behind: processes that were hit and still there after the end; they have been killed.
    """

    seed: int
    finished: bool
    failure: str
    checkpoint_every: int
    steps: int
    seconds: float
    undisturbed_seconds: float
    faults: Sequence[FaultRecord]
    comparison: ResultComparison | None
    memory: Sequence[MemoryTrend]
    left_behind: Sequence[str]

    @property
    def injected(self) -> list[FaultRecord]:
        """Faults that were not skipped."""
        return [record for record in self.faults if record.skipped is None]

    def problem_of(self, record: FaultRecord) -> str | None:
        """Why an injected fault counts as not survived; None when it was survived."""
        if record.step_s is None and not self.finished:
            return "no training step was complete after it"
        if record.redone_steps is not None and record.redone_steps > self.checkpoint_every:
            return f"{record.redone_steps} steps were made again, more than checkpoint.every={self.checkpoint_every}"
        status = record.driver_status
        if record.fault.kind == FaultKind.TERMINATE_DRIVER and status not in (None, PREEMPTED_STATUS):
            return f"the driver ended with status {status} instead of {PREEMPTED_STATUS}"
        return None

    @property
    def problems(self) -> list[str]:
        """Everything that must not be; empty when the run kept its promises."""
        problems = [] if self.finished else [f"the disturbed run did not finish: {self.failure}"]
        problems += self.comparison.problems if self.comparison is not None else []
        problems += [
            f"fault {record.fault.index} ({record.fault.kind}, {record.victim}): {problem}"
            for record in self.injected
            if (problem := self.problem_of(record)) is not None
        ]
        return problems + [f"still there after the end: {process}" for process in self.left_behind]

    def to_dict(self) -> dict[str, Any]:
        """For machines; ``problems`` is empty when all went well."""
        return {
            "seed": self.seed,
            "finished": self.finished,
            "steps": self.steps,
            "seconds": self.seconds,
            "undisturbed_seconds": self.undisturbed_seconds,
            "checkpoint_every": self.checkpoint_every,
            "problems": self.problems,
            "comparison": None if self.comparison is None else asdict(self.comparison),
            "kinds": [summary.to_dict() for summary in self.by_kind()],
            "faults": [asdict(record) | {"problem": self.problem_of(record)} for record in self.faults],
            "memory": [asdict(trend) | {"verdict": trend.verdict} for trend in self.memory],
            "left_behind": list(self.left_behind),
        }

    def by_kind(self) -> list[KindSummary]:
        """One summary for each kind that came up."""
        kinds = [kind for kind in FaultKind if any(record.fault.kind == kind for record in self.faults)]
        return [
            KindSummary(
                kind,
                [record for record in self.faults if record.fault.kind == kind],
                sum(self.problem_of(record) is None for record in self.injected if record.fault.kind == kind),
            )
            for kind in kinds
        ]

    def verdict(self) -> str:
        """What came out, in a few lines."""
        injected = len(self.injected)
        skipped = len(self.faults) - injected
        lines = [f"{injected} faults in {self.seconds / 60:.1f} minutes, {skipped} skipped, {self.steps} steps"]
        lines[0] += f" (undisturbed: {self.undisturbed_seconds / 60:.1f} minutes)"
        if self.comparison is not None and self.comparison.same:
            lines.append("the result is that of the undisturbed run: policies bit for bit, metrics of every step")
        if self.problems:
            return "\n".join([*lines, *(f"NOT KEPT: {problem}" for problem in self.problems)])
        return "\n".join([*lines, "every fault was survived"])

    def tables(self) -> Group:
        """For people."""
        return Group(_fault_table(self.by_kind()), _memory_table(self.memory))


@dataclass(frozen=True, slots=True)
class KindSummary:
    """All faults of one kind.

    Attributes:
        kind: of the faults.
        records: of the faults, skipped ones included.
        survived: how many of the injected ones were survived.
    """

    kind: FaultKind
    records: list[FaultRecord]
    survived: int

    @property
    def injected(self) -> int:
        """Faults that were not skipped."""
        return sum(record.skipped is None for record in self.records)

    def spread(self, name: str) -> tuple[float, float] | None:
        """Median and largest of one figure of the records; None when no record has it."""
        values = [value for record in self.records if (value := getattr(record, name)) is not None]
        return (median(values), max(values)) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Counts, and (median, largest) of each figure."""
        reasons = [record.skipped for record in self.records if record.skipped is not None]
        return {
            "kind": self.kind,
            "injected": self.injected,
            "survived": self.survived,
            "skipped": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            **{name: self.spread(name) for name in FIGURES},
        }


def _fault_table(summaries: Sequence[KindSummary]) -> Table:
    caption = "median and largest: seconds until noticed, replaced, and a step was complete; steps made again"
    table = Table(title="faults", caption=caption)
    columns = ("hit", "ok", "skipped", "noticed", "replaced", "step", "redone")
    table.add_column("kind")
    for column in columns:
        table.add_column(column, justify="right")
    for summary in summaries:
        counts = (summary.injected, summary.survived, len(summary.records) - summary.injected)
        table.add_row(
            str(summary.kind),
            *map(str, counts),
            *(_spread_text(summary.spread(name)) for name in FIGURES),
        )
    return table


def _memory_table(trends: Sequence[MemoryTrend]) -> Table:
    limit = f"{FLAT_BYTES_PER_MINUTE / MIB:g} MiB/min"
    caption = f"flat: grows by less than {limit} (Theil–Sen over each life, its first {WARM_UP_S:g} s left out)"
    table = Table(title="memory", caption=caption)
    table.add_column("who")
    for column in ("processes", "typical", "growth per minute", "verdict"):
        table.add_column(column, justify="right")
    for trend in trends:
        slope = "" if trend.slope is None else f"{trend.slope / MIB:+.2f} MiB"
        typical = "" if trend.slope is None else f"{trend.typical / MIB:.0f} MiB"
        table.add_row(trend.role, str(trend.lives), typical, slope, trend.verdict)
    return table


def _spread_text(spread: tuple[float, float] | None) -> str:
    if spread is None:
        return "–"
    return f"{spread[0]:.3g}, {spread[1]:.3g}"
