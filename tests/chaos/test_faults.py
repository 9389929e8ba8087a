"""The library of faults on plain processes: only the one that is meant is hit, and every wait has an end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import psutil
import pytest

from bgrpo.chaos import faults
from bgrpo.chaos.faults import Missed, Victim, alive, at_steps, end_leftovers, find, hit, last_step, wait_until

SLEEP = "import time; print(flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"


@pytest.fixture
def spawn() -> Iterator[Callable[..., int]]:
    """Starts a Python that sleeps, its command line ending in the given words; what is left at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, code: str = SLEEP) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE))
        assert started[-1].stdout is not None and started[-1].stdout.read(1) == b"\n"
        return started[-1].pid

    yield start
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "time.sleep(600)" in " ".join(process.cmdline()):
                process.kill()
    for child in started:
        child.wait(30)


def test_only_the_process_that_is_meant_is_hit(spawn: Callable[..., int]) -> None:
    pid = spawn("RolloutActor")
    started = psutil.Process(pid).create_time()
    with pytest.raises(Missed, match="is no VerifierActor of this Ray"):
        hit(Victim(pid, "VerifierActor"), SIGKILL)
    with pytest.raises(Missed, match="of this Ray"):
        hit(Victim(pid, "RolloutActor"), SIGKILL, parent=1)
    with pytest.raises(Missed, match="is another one by now"):
        hit(Victim(pid, started=started - 60), SIGKILL)
    with pytest.raises(Missed, match="has 0 children"):
        hit(Victim(pid, child=True), SIGKILL)
    assert alive(Victim(pid, started=started)) and not alive(Victim(pid, started=started - 60))

    victim = Victim(pid, "RolloutActor", started=started, name="rollout 3", number=3)
    assert hit(victim, SIGKILL, parent=psutil.Process().pid) == replace(victim, title="")
    wait_until(lambda: not alive(pid), "its end")
    assert psutil.pid_exists(pid), "nobody has waited for it yet: a zombie"
    psutil.Process(pid).wait(30)
    with pytest.raises(Missed, match="is gone"):
        hit(pid, SIGKILL)


def test_a_check_is_hit_through_its_verifier(spawn: Callable[..., int]) -> None:
    verifier = spawn(code=PARENT)
    (check,) = psutil.Process(verifier).children()
    found = hit(Victim(verifier, child=True, name="check of verifier 0"), SIGSTOP)
    assert (found.pid, found.name) == (check.pid, "check of verifier 0")
    wait_until(lambda: check.status() == psutil.STATUS_STOPPED, "the stop")
    hit(found, SIGCONT)
    wait_until(lambda: check.status() != psutil.STATUS_STOPPED, "it goes on")
    hit(found, SIGKILL)
    wait_until(lambda: not alive(found), "its end")


def test_leftovers_are_killed_and_named(spawn: Callable[..., int]) -> None:
    gone, left = (hit(spawn(), SIGSTOP) for _ in range(2))
    hit(gone, SIGKILL)
    assert end_leftovers([gone, left], 0.5) == [left]
    wait_until(lambda: not alive(left), "its end")
    assert end_leftovers([gone, left], 0.0) == []


def test_a_runs_processes_are_found_by_their_role(spawn: Callable[..., int]) -> None:
    actors, learner = {spawn("ray::RolloutActor"), spawn("ray::RolloutActor.serve")}, spawn("ray::RayTrainWorker")
    assert actors <= set(find("rollout")) and learner not in find("rollout")
    assert learner in find("learner")


def test_a_wait_ends_with_what_was_waited_for() -> None:
    with pytest.raises(TimeoutError, match=r"^the second actor: not within 0\.05 s$"):
        wait_until(lambda: False, "the second actor", 0.05)


def write_steps(metrics: Path, count: int, torn: str = "") -> None:
    metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, count + 1)) + torn)


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == 0
    write_steps(metrics, 30, torn='{"step": 31')
    assert last_step(metrics) == 30
    monkeypatch.setattr(faults, "TAIL_BYTES", 40)
    assert last_step(metrics) == 30, "also when only the end of a long file is read"


def test_acts_come_at_their_steps_and_their_errors_to_the_caller(tmp_path: Path) -> None:
    metrics, seen = tmp_path / "metrics.jsonl", []
    with at_steps(metrics, {5: lambda: seen.append("five"), 2: lambda: seen.append("two"), 9: seen.clear}) as begun:
        write_steps(metrics, 3)
        wait_until(lambda: seen == ["two"], "the first act")
        write_steps(metrics, 6)
        wait_until(lambda: seen == ["two", "five"], "the second act")
    assert begun == [2, 5]
    with pytest.raises(Missed, match="is gone"), at_steps(metrics, {1: lambda: hit(2**22, SIGKILL)}) as begun:
        wait_until(lambda: begun, "the act")
