"""Silence is told once, then at intervals; a silent learner leaves its stacks, a crashed one its traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bgrpo.chaos.faults import wait_until
from bgrpo.distributed.train.learner_watch import LearnerWatch, crash_record, describe_learners, read_open_ends
from bgrpo.training.watchdog import Silence, Watchdog

LEARNER = """
import ctypes, os, signal, sys, time
from pathlib import Path
from bgrpo.distributed.train.learner_watch import crash_record

def break_down():
    {fault}

with crash_record(Path(sys.argv[1]), 3):
    break_down()
"""


@given(st.lists(st.tuples(st.floats(0.01, 5), st.booleans()), max_size=60), st.floats(0.5, 9), st.floats(0.5, 9))
def test_silence_is_told_when_it_is_due_and_only_then(
    events: list[tuple[float, bool]], first_s: float, again_s: float
) -> None:
    """Against a plain account of all moves and all reports."""
    silence, now, moves, told = Silence(first_s, again_s, since=0.0), 0.0, [0.0], [-1.0]
    for wait, moves_now in events:
        now += wait
        if moves_now:
            silence.moved(now)
            moves.append(now)
            continue
        due = silence.due(now)
        told_since_move = told[-1] >= moves[-1]
        expected = now - told[-1] >= again_s if told_since_move else now - moves[-1] >= first_s
        assert due == (now - moves[-1] if expected else None)
        if due is not None:
            told.append(now)


def test_a_watchdog_tells_as_long_as_nothing_moves() -> None:
    told: list[float] = []
    with Watchdog(0.1, 0.05, told.append) as dog:
        wait_until(lambda: len(told) >= 3, "three reports")
        moved_at = time.monotonic()
        dog.moved()
        before = len(told)
        wait_until(lambda: len(told) > before, "the next report")
        assert 0.1 <= told[before] <= time.monotonic() - moved_at
    after = len(told)
    time.sleep(0.3)
    assert len(told) == after, "it is over"
    assert told[1] > told[0] >= 0.1


def test_a_silent_learner_leaves_its_stacks_until_its_next_step(tmp_path: Path) -> None:
    file = tmp_path / "learners" / "1.silent"

    def wait_for_rollouts(silent_s: float) -> dict:
        wait_until(lambda: file.exists() and json.loads(file.read_text())["silent_s"] > silent_s, "stacks")
        return json.loads(file.read_text())

    with LearnerWatch(tmp_path, 1, stall_s=0.4) as watch:
        wait_for_rollouts(0.5)
        first, second = describe_learners(tmp_path, 2, 60.0, time.time()).split("learner 1 ")
        assert first == "learner 0:\n  says nothing: it starts, or it is stopped or in native code\n"
        assert re.match(rf"\(process {os.getpid()} on {re.escape(socket.gethostname())}\), no step for \d+ s:", second)
        assert "in wait_for_rollouts: wait_until(" in second
        moved_at = time.monotonic()
        watch.moved()
        told = wait_for_rollouts(0.0)
        assert 0.2 <= told["silent_s"] <= time.monotonic() - moved_at
    assert list((tmp_path / "learners").iterdir()) == []


def test_a_learner_that_stopped_saying_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "learners").mkdir()
    old = {"where": "learner 0 (process 5 on node-7)", "when": 1000.0, "silent_s": 90.0, "stacks": "main:\n  in f"}
    (tmp_path / "learners" / "0.silent").write_text(json.dumps(old))
    now = describe_learners(tmp_path, 1, 180.0, now=1010.0)
    assert now == "learner 0 (process 5 on node-7), no step for 100 s:\n  main:\n    in f"
    later = describe_learners(tmp_path, 1, 180.0, now=1100.0)
    assert later.splitlines()[0] == "learner 0 (process 5 on node-7), no step for 190 s:"
    assert later.splitlines()[1] == "  does not answer (stopped, or in native code); 100 s ago:"
    (tmp_path / "learners" / "0.silent").write_text(json.dumps(old)[:20])
    assert "says nothing" in describe_learners(tmp_path, 1, 180.0, now=1010.0)


def crashed(run_dir: Path, fault: str) -> int:
    """Exit status of a learner that breaks down so."""
    code = LEARNER.format(fault=fault)
    return subprocess.run([sys.executable, "-c", code, str(run_dir)], capture_output=True, timeout=120).returncode


def test_a_crash_in_native_code_leaves_its_place_and_traceback(tmp_path: Path) -> None:
    start = time.time()
    assert crashed(tmp_path, "ctypes.string_at(0)") < 0
    (end,) = read_open_ends(tmp_path, since=start)
    assert end.rank == 3
    assert end.where.startswith("learner 3 (process ") and end.where.endswith(f"on {socket.gethostname()})")
    assert "Segmentation fault" in end.crash and "in break_down" in end.crash
    assert read_open_ends(tmp_path, since=time.time()) == [], "of an earlier attempt"


def test_a_killed_learner_leaves_its_place_and_one_that_raised_nothing(tmp_path: Path) -> None:
    start = time.time()
    assert crashed(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") < 0
    (end,) = read_open_ends(tmp_path, since=start)
    assert end.where.startswith("learner 3 (process ") and end.crash == ""
    assert crashed(tmp_path, "raise ValueError('of its own')") == 1
    assert read_open_ends(tmp_path, since=start) == []


def test_a_record_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "learners").write_text("in the way")
    with crash_record(tmp_path, 0):
        ran = True
    assert ran
