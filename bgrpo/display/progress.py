"""What a run shows while it goes on: a live display, or a line every few seconds where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bgrpo.display.terminal import PlainConsole
from bgrpo.scoring.failed_checks import describe_failures, failures_in

PLAIN_INTERVAL_S = 10.0
STEPS_LOOKED_AT = 20
SAME_MOMENT_S = 0.1
"""Steps that come within so long were found in one look at the run's folder."""


class Column(NamedTuple):
    """One number of the display.

    Attributes:
        label: what stands over it.
        key: metric that it shows; nothing is shown until the metric has come.
        form: format specification.
        unless_zero: nothing is shown while the metric is 0.
    """

    label: str
    key: str
    form: str
    unless_zero: bool = False


TRAINING_COLUMNS = (
    Column("reward", "reward_mean", "z.3f"),
    Column("score", "score_mean", "z.3f"),
    Column("solved groups", "solved_groups", ".0%"),
    Column("top-1", "top1_accuracy", ".0%"),
    Column("KL", "kl", "z.4f"),
    Column("rollouts/s", "rollouts_per_s", ".0f"),
    Column("staleness", "staleness", ".0f"),
    Column("errors", "outcome/error", ".0f", unless_zero=True),
    Column("timeouts", "outcome/timeout", ".0f", unless_zero=True),
    Column("truncated", "outcome/truncated", ".0f", unless_zero=True),
)
PRETRAINING_COLUMNS = (
    Column("loss", "loss", ".4f"),
    Column("held-out loss", "validation_loss", ".4f"),
    Column("greedy", "greedy_accuracy", ".1%"),
    Column("learning rate", "learning_rate", ".2g"),
    Column("lines/s", "lines_per_s", ".0f"),
)


class Display:
    """Context manager that shows something live on a terminal, or a line now and then elsewhere.

    Args:
        console: where to write.
        interval_s: shortest time between plain lines.
        refresh_per_second: of the live display.
        clock: seconds, for that interval.
    """

    def __init__(
        self, console: Console, interval_s: float, refresh_per_second: float, clock: Callable[[], float]
    ) -> None:
        self._console = console
        self._interval_s = interval_s
        self._clock = clock
        self._printed_at = clock()
        live = console.is_terminal or console.is_jupyter
        self._live = Live(console=console, refresh_per_second=refresh_per_second) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a line above the display."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _show(self, render: Callable[[], RenderableType], line: Callable[[], str], at_once: bool = False) -> None:
        """Show ``render()``, or where there is no terminal ``line()``, ``at_once`` or when it is time for one."""
        if self._live is not None:
            self._live.update(render())
        elif at_once or self._clock() - self._printed_at >= self._interval_s:
            self._printed_at = self._clock()
            self.note(line())


class Pace:
    """How long a step takes, from when steps came: what passed before the first one does not count."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque(maxlen=STEPS_LOOKED_AT + 1)

    def step(self, now_s: float, step: int) -> None:
        """Step ``step`` came at ``now_s``."""
        if self._came and now_s - self._came[-1][0] < SAME_MOMENT_S:
            now_s = self._came.pop()[0]
        self._came.append((now_s, step))

    @property
    def step_s(self) -> float | None:
        """Median over the latest steps, in seconds; None until two have come, one after the other."""
        times = [(later - sooner) / (b - a) for (sooner, a), (later, b) in pairwise(self._came) if b > a]
        return median(times) if times else None


class TrainingProgress(Display):
    """Shows steps, metrics and the time left.

    Args:
        total_steps: steps of the whole run.
        title: name of the run.
        start_step: steps that were done before, for a resumed run.
        columns: the numbers to show.
        console: where to write.
        clock: seconds, for the interval between plain lines and the time left in them.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        start_step: int = 0,
        columns: tuple[Column, ...] = TRAINING_COLUMNS,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console or PlainConsole(), PLAIN_INTERVAL_S, 4, clock)
        self._total = total_steps
        self._title = title
        self._columns = columns
        self._pace = Pace()
        self._latest: dict[str, float] = {}
        self._told: set[str] = set()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps ·"),
            TimeElapsedColumn(),
            TextColumn("elapsed ·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start_step)
        if self._live is not None:
            self._live.update(self._render())

    def update(self, step: int, metrics: Mapping[str, float], details: Mapping[str, str] | None = None) -> None:
        """Step ``step`` of ``total_steps`` is done; metrics that do not come with every step keep their last value.

        Args:
            step: number of steps done.
            metrics: of this step.
            details: what failed in its checks, by outcome; the first of each kind is printed.
        """
        new = {kind: detail for kind, detail in (details or {}).items() if kind not in self._told}
        self._told |= new.keys()
        for line in describe_failures(failures_in(metrics), new):
            self.note(f"step {step}: {line}")
        self._latest |= metrics
        self._pace.step(self._clock(), step)
        self._bar.update(self._task, completed=step)
        self._show(self._render, lambda: self._line(step), at_once=step >= self._total)

    def _shown(self) -> list[tuple[str, str]]:
        return [
            (column.label, format(self._latest[column.key], column.form))
            for column in self._columns
            if column.key in self._latest and not (column.unless_zero and not self._latest[column.key])
        ]

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        shown = self._shown()
        for label, _ in shown:
            table.add_column(label, justify="right", no_wrap=True)
        if shown:
            table.add_row(*(Text(text, style="bold") for _, text in shown))
        return Group(self._bar, table)

    def _line(self, step: int) -> str:
        parts = [f"{self._title}: step {step}/{self._total}", *(f"{label} {text}" for label, text in self._shown())]
        step_s = self._pace.step_s
        if step_s is not None and step < self._total:
            parts.append(f"{format_duration(step_s * (self._total - step))} left")
        return " · ".join(parts)


def format_duration(seconds: float) -> str:
    """``42 s``, ``3:07 min`` or ``1:02:09 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, remainder = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{remainder:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d} h"
