"""What is waited for is told: soon, by name, with its limit; short waits say nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attempts import attempt

from bgrpo import waits
from bgrpo.config import TrackingSection
from bgrpo.display.terminal import progress_bar
from bgrpo.errors import UserError
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.scoring.check_process import START_LIMIT_S, CheckProcess
from bgrpo.tasks.base import load_task
from bgrpo.waits import AGAIN, Wait, _Waits, waiting

SILENT_S = 4.0


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "SILENT_S", SILENT_S)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "SILENT_S", 0.3)
    monkeypatch.setattr(waits, "_POLL_S", 0.05)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Writes the module that is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return (tmp_path / "hangs_here.py").write_text


def told_at(spans: Sequence[tuple[float, float]], until: float, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """When lines came, of waits that lasted from one second to another, looked at ten times a second."""
    found, waits_of = [], _Waits()
    every = [Wait(f"{start}", None, start) for start, _ in spans]
    for tenth in range(round(until * 10) + 1):
        now = tenth / 10
        current = [wait for wait, (start, end) in zip(every, spans, strict=True) if start <= now < end]
        if current:
            waits_of._look(current, now)
        found += [now] * len(capsys.readouterr().err.splitlines())
    return found


def test_a_wait_is_told_soon_and_then_less_and_less_often(capsys: pytest.CaptureFixture[str]) -> None:
    assert told_at([(0, 130)], 130, capsys) == [SILENT_S, SILENT_S * AGAIN, SILENT_S * AGAIN**2, SILENT_S * AGAIN**3]


def test_short_waits_say_nothing_and_many_within_one_do(capsys: pytest.CaptureFixture[str]) -> None:
    short = [(start, start + 2.0) for start in range(0, 20, 2)]
    assert told_at(short, 20, capsys) == []
    times = told_at([(0, 20), *short], 20, capsys)
    assert times[0] == SILENT_S and max(b - a for a, b in pairwise(times)) <= SILENT_S + 0.2


def test_the_innermost_is_told_with_its_limit(impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("the run"), waiting("a function", 7.0) as wait:
        wait.what = "another function"
        time.sleep(0.6)
    assert capsys.readouterr().err == "waiting: another function: 0 s so far, at most 7 s\n"
    assert not waits._waits.current


def test_many_short_waits_need_one_thread_which_ends(impatient: None) -> None:
    for _ in range(1000):
        with waiting("nothing"):
            pass
    assert [thread.name for thread in threading.enumerate()].count("waits") <= 1
    time.sleep(0.8)
    assert "waits" not in [thread.name for thread in threading.enumerate()]


HANGS = {
    "import": ("import time\ntime.sleep(30)", "reward function 'hangs_here:f' to be imported", "on import", [1.5]),
    "trial": (
        "import time\ndef f(prompt, completion): time.sleep(30)",
        "reward function 'hangs_here:f', which is tried on one prompt",
        "tried on prompt",
        [120.0, 1.5],
    ),
}


@pytest.mark.parametrize("where", HANGS)
def test_a_function_that_hangs_before_the_start_is_named_then_refused(
    where: str,
    impatient: None,
    module: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, waited, cause, limits = HANGS[where]
    module(text)
    ask, left = CheckProcess._ask, iter(limits)

    def ask_for_a_moment(self: CheckProcess, content: Any, count: int, results: Any, limit_s: float) -> Any:
        assert limit_s == START_LIMIT_S
        return ask(self, content, count, results, next(left))

    monkeypatch.setattr(CheckProcess, "_ask", ask_for_a_moment)
    with pytest.raises(UserError, match=rf"'hangs_here:f': .*{cause}.* took longer than 1.5 s"):
        CheckProcess("hangs_here:f", trial=attempt("p", "c"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"waiting: {waited}: ") and lines[-1].endswith(f"at most {START_LIMIT_S:g} s")


class SlowSection(SimpleNamespace):
    """A section of trackers whose library takes its time."""

    enabled = False
    also: list[str] = []  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        if name == "enabled":
            time.sleep(0.6)
        return super().__getattribute__(name)


def _task(stack: ExitStack) -> None:
    load_task("hangs_here:Slow")


def _tracker(stack: ExitStack) -> None:
    section: TrackingSection = SlowSection()  # type: ignore[assignment]
    Tracker.start(section, ".", "x", {})


def _reading(stack: ExitStack) -> None:
    show = stack.enter_context(progress_bar("reading problems"))
    show(5_000, None)
    time.sleep(0.6)


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        (_task, "task.name='hangs_here:Slow': Slow(…)"),
        (_tracker, "MLflow, and whatever else the run is recorded in"),
        (_reading, "reading problems, 5,000"),
    ],
)
def test_whatever_comes_before_the_start_is_told(
    wait: Callable[[ExitStack], None],
    told: str,
    impatient: None,
    module: Callable[[str], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module(
        "import time\nclass Slow:\n    name = 'slow'\n    def __init__(self): time.sleep(0.6)\n"
        "    def check(self, prompt, completion): ...\n    def load(self, path): ...\n"
    )
    with ExitStack() as stack:
        wait(stack)
    assert f"waiting: {told}: " in capsys.readouterr().err
