"""Checks in a killable child: every way a check can misbehave, and that its neighbours do not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from attempts import attempt, attempts

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.scoring import check_process
from bgrpo.scoring.check_process import CheckProcess
from bgrpo.scoring.judge import Judge

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def checks() -> Iterator[CheckProcess]:
    with CheckProcess("reward_functions:misbehave", timeout_s=TIMEOUT_S) as process:
        yield process


def outcome_of(checks: CheckProcess, completion: str) -> str:
    """Outcome of one completion between two good ones, which must not be disturbed."""
    before, result, after = checks.run(attempts(("p", "before"), ("p", completion), ("p", "after")))
    assert (before.outcome, before.score, after.outcome, after.score) == ("scored", 1.0, "scored", 1.0)
    return f"{result.outcome} {result.score} {result.detail}"


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_scores_and_outcomes() -> None:
    with CheckProcess("reward_functions:length") as process:
        results = process.run(attempts(("p", "abcde"), ("p", "ab"), ("p", "abc"), ("p", "\ud800 ⁇ \n")))
    assert [(r.outcome, r.score) for r in results] == [
        ("scored", 2.0),
        ("scored", -1.0),
        ("scored", 0.0),
        ("scored", 2.0),
    ]


def test_the_shipped_task_checks_through_the_child() -> None:
    """f = (a^2)^2 + 1: a^2 solves it, a^3 does not, f itself is trivial, and noise is no answer."""
    prompt = "+ P 1 ^ a P 4 ⁇"
    with Judge(TrainConfig()).start(attempt(prompt, "^ a P 2")) as process:
        results = process.judge(attempts(*((prompt, text) for text in ("^ a P 2", "^ a P 3", "+ P 1 ^ a P 4", "^ ^"))))
    assert [result.outcome for result in results] == ["correct", "wrong", "trivial", "unparseable"]
    assert [result.score for result in results] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("completion", ["sleep", "spin"])
def test_endless_check_is_killed(checks: CheckProcess, completion: str) -> None:
    assert outcome_of(checks, completion) == "timeout None the check took longer than 1 s"


def test_crashes_are_errors(checks: CheckProcess) -> None:
    assert outcome_of(checks, "exit") == "error None the check process exited with status 3"
    assert outcome_of(checks, "crash") == "error None the check process was ended by SIGSEGV"


def test_exception_is_an_error_with_its_place(checks: CheckProcess) -> None:
    pid = checks.pid
    answer = outcome_of(checks, "raise")
    assert answer.startswith("error None ValueError: no such (")
    assert answer.endswith(" in misbehave)") and "reward_functions.py:" in answer
    assert checks.pid == pid, "an exception must not cost a new process"


def test_values_that_are_no_score(checks: CheckProcess) -> None:
    assert outcome_of(checks, "text") == "error None the reward function returned str, expected a float"
    assert outcome_of(checks, "nan") == "error None the reward function returned nan, expected a finite float"
    assert outcome_of(checks, "bool") == "scored 1.0 "


def test_output_and_input_do_not_disturb(checks: CheckProcess) -> None:
    """What a check prints is no answer, and reading standard input ends at once."""
    assert outcome_of(checks, "print") == "scored 1.0 "


def test_equal_items_are_checked_once(checks: CheckProcess, tmp_path: Path) -> None:
    log = tmp_path / "log"
    results = checks.run(attempts(*((prompt, f"count {log}") for prompt in "pqpp")))
    assert len(results) == 4
    assert log.read_text() == "called\n" * 2


def test_a_child_that_starts_again_tells_why(checks: CheckProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a function that always hangs looks like a module that takes long to be imported."""
    told: list[str] = []

    def waiting(what: str, limit_s: float | None = None) -> AbstractContextManager[None]:
        told.append(what)
        return nullcontext()

    monkeypatch.setattr(check_process, "waiting", waiting)
    assert outcome_of(checks, "x") == "scored 1.0 " and not told
    assert outcome_of(checks, "sleep").startswith("timeout")
    assert outcome_of(checks, "y") == "scored 1.0 "
    assert told[0].endswith("to be imported again: in the last call the check took longer than 1 s")


def test_a_child_killed_by_somebody_else_costs_nothing(checks: CheckProcess, tmp_path: Path) -> None:
    """Killed while idle, and ended once in the middle of a check: both times the items are simply done again."""
    checks.run(attempts(("p", "x")))
    assert checks.pid is not None
    os.kill(checks.pid, signal.SIGKILL)
    time.sleep(0.05)
    assert outcome_of(checks, "y") == "scored 1.0 "
    assert outcome_of(checks, f"once {tmp_path / 'mark'}") == "scored 1.0 "


def test_killed_from_outside_in_the_middle_of_a_check() -> None:
    with CheckProcess("reward_functions:misbehave", timeout_s=1.5) as process:
        victim = process.pid
        assert victim is not None
        killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
        killer.start()
        assert process.run(attempts(("p", "sleep")))[0].outcome == "timeout", "done again, and slow again"
        assert process.pid != victim


def test_memory_limit() -> None:
    with CheckProcess("reward_functions:misbehave", memory_bytes=1024**3) as process:
        before, result, after = process.run(attempts(("p", "x"), ("p", "allocate"), ("p", "y")))
    assert (before.outcome, result.outcome, after.outcome) == ("scored", "error", "scored")
    assert result.detail.startswith("MemoryError")


def test_large_batches_do_not_deadlock(checks: CheckProcess) -> None:
    items = attempts(*(("p" * 2000, f"x{i}" * 500) for i in range(3000)))  # far beyond what a socket buffers
    assert all(result.outcome == "scored" for result in checks.run(items))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:f", "reward function 'no_such_module:f': cannot import it (No module named 'no_such_module')"),
        ("reward_functions:missing", "reward function 'reward_functions:missing': cannot import it"),
        ("reward_functions:NOT_CALLABLE", "is a int, not a function"),
        ("reward_functions", "expected 'module:function'"),
        ("task:no_such_task", "task.name='no_such_task': expected 'dialogue', 'polynomial', 'text' or 'module:Class'"),
    ],
)
def test_bad_target_is_refused_at_construction(target: str, message: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        CheckProcess(target)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unmade", "Unmade() takes no arguments: it is called as f(prompt, completion)"),
        ("of_the_prompt", "of_the_prompt() takes 1 positional argument but 2 were given: it is called as f(prompt, co"),
        ("one_for_all", "the reward function returned 1 values for 2 completions"),
    ],
)
def test_what_is_called_in_a_wrong_way_is_found_in_the_trial(name: str, message: str) -> None:
    """And told without a place in this package."""
    with pytest.raises(UserError) as caught:
        CheckProcess(f"reward_functions:{name}", trial=attempts(("p", "x"))[0])
    assert message in str(caught.value) and "user_functions.py" not in str(caught.value)


def test_child_ends_with_its_parent() -> None:
    """Also when the parent is killed in the middle of a check that never returns to Python."""
    program = (
        "import sys, threading; from bgrpo.scoring.check_process import CheckProcess; from attempts import attempts\n"
        "process = CheckProcess('reward_functions:misbehave', timeout_s=0.4); print(process.pid, flush=True)\n"
        "sys.stdin.read(1); process._timeout_s = 100; process.run(attempts(('p', sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for completion in ("idle", "spin"):
        with subprocess.Popen(
            [sys.executable, "-c", program, completion],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as parent:
            assert parent.stdout is not None and parent.stdin is not None
            child = int(parent.stdout.readline())
            if completion == "spin":
                parent.stdin.write("x")
                parent.stdin.flush()
                time.sleep(0.3)
            parent.kill()
        assert gone(child, within_s=2 * 0.4 + 1 + 5), completion


def test_close_ends_the_child() -> None:
    process = CheckProcess("reward_functions:length")
    pid = process.pid
    process.close()
    process.close()
    assert pid is not None and gone(pid, within_s=5)
    assert process.pid is None


def test_child_does_not_import_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "which_modules.py").write_text("import sys\ndef heavy(p, c): return float('torch' in sys.modules)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with CheckProcess("which_modules:heavy") as process:
        assert process.run(attempts(("p", "c")))[0].score == 0.0
