"""What a report on a stall says of threads and processes: their own calls, each stack once, in bounded length."""

from __future__ import annotations

import linecache
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st

from bgrpo.training.stacks import (
    FRAMES_SHOWN,
    PROCESSES_SHOWN,
    current_stacks,
    describe_processes,
    describe_threads,
)

LIBRARY = f"{sysconfig.get_paths()['stdlib']}/threading.py"
RAY = "/venv/lib/python3.11/site-packages/ray/_private/worker.py"
PACKAGE = "/venv/lib/python3.11/site-packages/torch/nn/functional.py"
OWN = "/home/me/reward.py"


def stack(*calls: tuple[str, str]) -> traceback.StackSummary:
    """A stack of (file, function), the innermost last."""
    return traceback.StackSummary.from_list([(file, 7, function, "pass") for file, function in calls])


@contextmanager
def waiting_thread(name: str) -> Iterator[None]:
    """A thread that is inside ``wait_in_here``."""
    entered, release = threading.Event(), threading.Event()

    def wait_in_here() -> None:
        entered.set()
        release.wait(60)

    thread = threading.Thread(target=wait_in_here, name=name)
    thread.start()
    assert entered.wait(30)
    try:
        yield
    finally:
        release.set()
        thread.join(30)


def test_another_threads_calls_are_shown_with_file_line_and_source() -> None:
    with waiting_thread("reader-1"):
        text = current_stacks()
    block = text.split("reader-1:\n")[1]
    assert "in wait_in_here: release.wait(60)" in block.splitlines()[0]
    assert linecache.getline(__file__, int(block.split(f"{__file__}:")[1].split(" ")[0])).strip() == "release.wait(60)"
    assert "in wait: " in block, "the call that it waits in"
    assert "current_stacks" not in text, "the thread that asks is left out"


def test_threads_inside_a_named_function_are_left_out() -> None:
    with waiting_thread("reader-2"):
        watching = next(thread for thread in threading.enumerate() if thread.name == "reader-2")
        code = watching._target.__code__  # type: ignore[attr-defined]
        assert "reader-2" not in current_stacks(but_in=[code])
        assert "reader-2" in current_stacks()


def test_threads_that_only_wait_in_libraries_are_left_out() -> None:
    idle = {"pool": stack((LIBRARY, "run"), (LIBRARY, "wait")), "ray": stack((RAY, "main_loop"))}
    assert describe_threads(idle) == "no thread does anything"
    shown = describe_threads({**idle, "main": stack((RAY, "main_loop"), (OWN, "reward"), (LIBRARY, "sleep"))})
    assert shown.startswith(f"main:\n  {OWN}:7 in reward: pass\n  {LIBRARY}:7 in sleep: pass")
    assert "main_loop" not in shown
    assert "linear" in describe_threads({"backward": stack((PACKAGE, "linear"))}), "other packages' threads do work"


def test_equal_stacks_are_shown_once() -> None:
    same = stack((OWN, "reward"))
    text = describe_threads({"a": same, "b": stack((OWN, "other")), "c": same})
    assert text == f"a, c:\n  {OWN}:7 in reward: pass\nb:\n  {OWN}:7 in other: pass"


def test_of_a_deep_stack_the_innermost_calls_are_shown() -> None:
    deep = stack(*((OWN, f"f{depth}") for depth in range(FRAMES_SHOWN + 5)))
    lines = describe_threads({"main": deep}).splitlines()
    assert lines[1] == "  … 5 calls"
    assert len(lines) == FRAMES_SHOWN + 2
    assert f"in f{FRAMES_SHOWN + 4}:" in lines[-1]


@given(st.lists(st.sampled_from("abcdefghij"), max_size=40))
def test_every_process_is_named_or_counted(doings: list[str]) -> None:
    lines = describe_processes({f"actor-{number}": doing for number, doing in enumerate(doings)}).splitlines()
    named = [name for line in lines if line.endswith(":") for name in line[:-1].split(", ")]
    counted = int(lines[-1].split()[0]) if lines and lines[-1].endswith("more processes") else 0
    assert len(named) + counted == len(doings) and len(set(named)) == len(named)
    bodies = [line for line in lines if line.startswith("  ")]
    assert len(set(bodies)) == len(bodies) == min(len(set(doings)), PROCESSES_SHOWN)
    assert (counted > 0) == (len(set(doings)) > PROCESSES_SHOWN)
