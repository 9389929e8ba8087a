"""What a sweep shows while it goes on: a live table, or a line now and then where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bgrpo.display.progress import Display, format_duration
from bgrpo.sweep.sweep_plan import ENDED, Plan, Trial

PLAIN_INTERVAL_S = 30.0
MAX_ROWS = 16
STYLES = {"running": "bold", "finished": "green", "failed": "red", "stopped": "yellow", "pending": "dim"}


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """How far a trial is."""

    trial: Trial
    step: int  # training steps done
    fraction: float  # of the budget that is spent, 0 to 1
    score: float | None  # newest value of the metric that selects
    left_s: float | None  # seconds to its end; None when that cannot be told yet


def time_left(trial: Trial, fraction: float, now: float) -> float | None:
    """Seconds to the end of a running trial, if it goes on as it did since its first start."""
    if trial.state != "running" or trial.since is None or fraction <= 0:
        return None
    return max(0.0, (trial.seconds + now - trial.since) * (1 / fraction - 1))


def sweep_time_left(plan: Plan, rows: Sequence[TrialProgress], at_a_time: int) -> float | None:
    """Seconds to the end of the whole sweep; None when that cannot be told yet."""
    durations = [trial.seconds for trial in plan.trials if trial.state == "finished" and trial.seconds]
    running = [row for row in rows if row.left_s is not None]
    durations = durations or [row.left_s / (1 - row.fraction) for row in running if row.left_s and row.fraction < 1]
    if not durations:
        return None
    to_come = plan.total - sum(trial.state in ENDED for trial in plan.trials) - len(running)
    return (sum(row.left_s or 0.0 for row in running) + to_come * mean(durations)) / max(1, at_a_time)


class SweepDisplay(Display):
    """Shows the trials of a sweep.

    Args:
        plan: the trials.
        at_a_time: that run together.
        metric: that selects.
        console: where to write.
        clock: seconds, for the interval between plain lines.
    """

    def __init__(
        self, plan: Plan, at_a_time: int, metric: str, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console, PLAIN_INTERVAL_S, 2, clock)
        self._plan = plan
        self._at_a_time = at_a_time
        self._metric = metric.replace("_", "-")

    def update(self, rows: Sequence[TrialProgress]) -> None:
        """Show how far all trials are, ``rows`` being in the order of the plan."""
        self._show(lambda: Group(self._table(rows), Text(self._summary(rows))), lambda: self._lines(rows))

    def _lines(self, rows: Sequence[TrialProgress]) -> str:
        lines = [self._summary(rows)]
        for row in (row for row in rows if row.trial.state == "running"):
            step, done, score, left = _cells(row)
            parts = [row.trial.id, f"step {step}", f"{done} of its budget", score and f"score {score}"]
            lines.append(" · ".join(part for part in [*parts, left and f"{left} left"] if part))
        return "\n  ".join(lines)

    def _table(self, rows: Sequence[TrialProgress]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("trial", "algorithm", "state"):
            table.add_column(heading, no_wrap=True)
        for heading in ("step", "budget", self._metric, "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in _shown(rows):
            trial = row.trial
            table.add_row(trial.id, trial.algorithm, trial.state, *_cells(row), style=STYLES[trial.state])
        return table

    def _summary(self, rows: Sequence[TrialProgress]) -> str:
        counts = {state: sum(row.trial.state == state for row in rows) for state in STYLES}
        ended = sum(counts[state] for state in ENDED)
        parts = [f"{ended} of {self._plan.total} trials ended", f"{counts['running']} running"]
        parts += [f"{counts[state]} {state}" for state in ("failed", "stopped") if counts[state]]
        left = sweep_time_left(self._plan, rows, self._at_a_time)
        return " · ".join(parts if left is None else [*parts, f"{format_duration(left)} left"])


def _shown(rows: Sequence[TrialProgress]) -> list[TrialProgress]:
    """Those that run, then as many as have room of those that ended last and of those that come next."""
    first = {"running": 0, "pending": 2}
    by_interest = sorted(rows, key=lambda row: (first.get(row.trial.state, 1), -(row.trial.ended or 0.0)))
    chosen = {row.trial.id for row in by_interest[:MAX_ROWS]}
    return [row for row in rows if row.trial.id in chosen]


def _cells(row: TrialProgress) -> tuple[str, str, str, str]:
    """Step, share of the budget, score and time left."""
    if row.trial.state == "pending" and not row.step:
        return "", "", "", ""
    score = "" if row.score is None else f"{row.score:.3f}"
    return str(row.step), f"{row.fraction:.0%}", score, "" if row.left_s is None else format_duration(row.left_s)
