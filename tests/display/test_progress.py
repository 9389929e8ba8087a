"""The display of a run, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bgrpo.display.progress import Pace, TrainingProgress, format_duration
from bgrpo.display.terminal import PlainConsole


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_ten_seconds_and_the_last_step() -> None:
    out, clock = io.StringIO(), Clock()
    with TrainingProgress(
        100, "run-1", console=Console(file=out, force_terminal=False, width=80), clock=clock
    ) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(step, {"reward_mean": 0.5, "solved_groups": 0.25, "unknown": 1.0})
    lines = out.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [f"{step}/100" for step in range(10, 101, 10)]
    assert lines[0] == "run-1: step 10/100 · reward 0.500 · solved groups 25% · 1:30 min left"
    assert lines[-1] == "run-1: step 100/100 · reward 0.500 · solved groups 25%"


def test_the_time_left_is_that_of_steps() -> None:
    """What passes before the first one, and one slow step, do not count; a single step says nothing."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=False)
    with TrainingProgress(100, "r", start_step=80, console=console, clock=clock) as progress:
        for seconds, step in ((600, 81), (10, 82), (10, 83), (90, 84), (10, 85)):
            clock.now += seconds
            progress.update(step, {})
    lines = out.getvalue().splitlines()
    assert lines[0] == "r: step 81/100"
    assert [line.split(" · ")[1] for line in lines[1:]] == [
        "3:00 min left",
        "2:50 min left",
        "2:40 min left",
        "2:30 min left",
    ]


def test_steps_that_are_found_together_share_the_time() -> None:
    pace, now = Pace(), 100.0
    assert pace.step_s is None
    for step in range(1, 61, 3):
        for found in range(3):
            pace.step(now + 0.001 * found, step + found)
            assert step > 1 or pace.step_s is None
        now += 0.75
    assert pace.step_s == pytest.approx(0.25)
    pace.step(now + 1000.0, 61)
    assert pace.step_s == pytest.approx(0.25)


def test_metrics_that_come_rarely_keep_their_last_value() -> None:
    out, clock = io.StringIO(), Clock()
    with TrainingProgress(9, "r", console=Console(file=out, force_terminal=False), clock=clock) as progress:
        progress.update(1, {"kl": 0.25})
        clock.now = 11.0
        progress.update(2, {"reward_mean": 1.0})
    assert "KL 0.2500" in out.getvalue()


def test_a_terminal_gets_a_live_display() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with TrainingProgress(10, "run-1", console=console) as progress:
        progress.update(4, {"reward_mean": 0.5, "kl": 0.125})
        progress.note("checkpoint at step 4")
    text = out.getvalue()
    assert "4/10" in text
    assert "0.1250" in text
    assert "checkpoint at step 4" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_failed_check_of_each_kind_is_told_once(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=250, height=20)
    with TrainingProgress(5, "r", console=console) as progress:
        progress.update(1, {"outcome/correct": 300.0, "outcome/error": 0.0, "outcome/truncated": 7.0})
        failed = {"outcome/correct": 312.0, "outcome/error": 8.0, "outcome/truncated": 5.0}
        progress.update(2, failed, {"error": "TypeError: [bold] $x_$"})
        progress.update(3, failed, {"error": "another"})
        progress.update(4, failed | {"outcome/timeout": 1.0}, {"error": "another", "timeout": "late"})
        progress.update(5, failed | {"outcome/timeout": 1234.0})
    text = out.getvalue()
    assert text.count("step 2: error in 8 of 320 checks, the first: TypeError: [bold] $x_$") == 1
    assert text.count("step 4: timeout in 1 of 321 checks, the first: late") == 1
    assert "another" not in text
    if not terminal:
        assert text.endswith("r: step 5/5 · errors 8 · timeouts 1234 · truncated 5\n")
    else:
        assert "timeouts" in text and "1234" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (187, "3:07 min"), (3729, "1:02:09 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


class ZMQInteractiveShell:
    """What a notebook's ``get_ipython`` gives, by its name."""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_draws_with_widgets_or_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "found" if widgets else None)
    assert Console().is_jupyter
    console = PlainConsole(file=io.StringIO())
    assert console.is_jupyter == widgets
    assert (TrainingProgress(3, "run", console=console)._live is not None) == widgets
    if not widgets:
        with TrainingProgress(1, "run", console=console) as progress:
            progress.update(1, {"reward_mean": 0.5})
        assert "run: step 1/1 · reward 0.500" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_rounds_to_zero_has_no_sign() -> None:
    """Rewards that are normalised within groups have a mean of 0, up to rounding."""
    out = io.StringIO()
    with TrainingProgress(1, "r", console=Console(file=out, force_terminal=False)) as progress:
        progress.update(1, {"reward_mean": -1e-16, "score_mean": 0, "kl": -1e-7})
    assert out.getvalue() == "r: step 1/1 · reward 0.000 · score 0.000 · KL 0.0000\n"
