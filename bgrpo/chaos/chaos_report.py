"""The report of a chaos run: what was injected, what became of it, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table

from bgrpo.chaos.memory_growth import FLAT_BYTES_PER_MINUTE, WARM_UP_S, MemoryTrend
from bgrpo.chaos.recovery import FaultRecord
from bgrpo.chaos.run_comparison import ResultComparison
from bgrpo.chaos.schedule import FaultKind

PREEMPTED_STATUS = 143
MIB = 1024**2
FIGURES = ("noticed_s", "replaced_s", "step_s", "redone_steps")


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """One chaos run."""

    seed: int  #: of the schedule.
    finished: bool  #: the disturbed run came to its end.
    failure: str  #: why it did not; "" when it did.
    checkpoint_every: int  #: steps between its checkpoints.
    steps: int  #: of each run.
    seconds: float  #: from the first training step of the disturbed run to its end.
    undisturbed_seconds: float  #: from the first step of the undisturbed run to its last.
    faults: Sequence[FaultRecord]  #: one record per fault that came up, in order.
    comparison: ResultComparison | None  #: with the undisturbed run; None when the disturbed one did not finish.
    memory: Sequence[MemoryTrend]  #: one trend per role.
    left_behind: Sequence[str]  #: processes that were hit and still there after the end; they have been killed.

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
            for record in self.faults
            if record.skipped is None and (problem := self.problem_of(record)) is not None
        ]
        return problems + [f"still there after the end: {process}" for process in self.left_behind]

    def by_kind(self) -> list[dict[str, Any]]:
        """For each kind that came up: counts, and (median, largest) of each figure that some record has."""
        summaries = []
        for kind in FaultKind:
            records = [record for record in self.faults if record.fault.kind == kind]
            injected = [record for record in records if record.skipped is None]
            summary: dict[str, Any] = {
                "kind": kind,
                "injected": len(injected),
                "survived": sum(self.problem_of(record) is None for record in injected),
                "skipped": dict(Counter(record.skipped for record in records if record.skipped is not None)),
            }
            for name in FIGURES:
                values = [value for record in records if (value := getattr(record, name)) is not None]
                summary[name] = (median(values), max(values)) if values else None
            summaries += [summary] if records else []
        return summaries

    def to_dict(self) -> dict[str, Any]:
        """For machines; ``problems`` is empty when all went well."""
        return asdict(self) | {
            "problems": self.problems,
            "kinds": self.by_kind(),
            "faults": [asdict(record) | {"problem": self.problem_of(record)} for record in self.faults],
            "memory": [asdict(trend) | {"verdict": trend.verdict} for trend in self.memory],
        }

    def verdict(self) -> str:
        """What came out, in a few lines."""
        skipped = sum(record.skipped is not None for record in self.faults)
        injected = len(self.faults) - skipped
        lines = [
            f"{injected} faults in {self.seconds / 60:.1f} minutes, {skipped} skipped, {self.steps} steps "
            f"(undisturbed: {self.undisturbed_seconds / 60:.1f} minutes)"
        ]
        if self.comparison is not None and not self.comparison.problems:
            lines.append("the result is that of the undisturbed run: policies bit for bit, metrics of every step")
        lines += [f"NOT KEPT: {problem}" for problem in self.problems] or ["every fault was survived"]
        return "\n".join(lines)

    def tables(self) -> Group:
        """For people."""
        faults = _table(
            "faults",
            ("kind", "hit", "ok", "skipped", "noticed", "replaced", "step", "redone"),
            "median and largest: seconds until noticed, replaced, and a step was complete; steps made again",
        )
        for row in self.by_kind():
            counts = (row["injected"], row["survived"], sum(row["skipped"].values()))
            spreads = ("–" if row[name] is None else "{:.3g}, {:.3g}".format(*row[name]) for name in FIGURES)
            faults.add_row(str(row["kind"]), *map(str, counts), *spreads)
        limit = f"{FLAT_BYTES_PER_MINUTE / MIB:g} MiB/min"
        memory = _table(
            "memory",
            ("who", "processes", "typical", "growth per minute", "verdict"),
            f"flat: grows by less than {limit} (Theil–Sen over each life, its first {WARM_UP_S:g} s left out)",
        )
        for trend in self.memory:
            sizes = ("", "")
            if trend.slope is not None:
                sizes = (f"{trend.typical / MIB:.0f} MiB", f"{trend.slope / MIB:+.2f} MiB")
            memory.add_row(trend.role, str(trend.lives), *sizes, trend.verdict)
        return Group(faults, memory)


def _table(title: str, columns: Sequence[str], caption: str) -> Table:
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table
