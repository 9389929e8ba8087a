"""Whatever a reward function does, its item gets the outcome it deserves and every other item its own score."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt, attempts
from hostile_functions import CASES, VALUES

from bgrpo.chaos.faults import alive, children, wait_until
from bgrpo.errors import UserError
from bgrpo.scoring import check_link
from bgrpo.scoring.check_child import LONGEST_DETAIL
from bgrpo.scoring.check_output import SHOWN_BYTES
from bgrpo.scoring.check_process import CheckProcess
from bgrpo.scoring.user_functions import MisreturnedError, as_score

TIMEOUT_S = 1.0
NOT_AN_ANSWER = "error None something else than an answer came from the check process"

EXPECTED = {
    "exit_at_once": "error None the check process exited with status 3$",
    "exit_politely": "error None SystemExit: enough ",
    "interrupt": "error None KeyboardInterrupt: ",
    "kill_itself": "error None the check process was ended by SIGKILL$",
    "end_by_an_unnamed_signal": "error None the check process was ended by signal 40$",
    "kill_its_parent": "error None the check process was ended by SIGKILL$",
    "kill_its_group": "error None the check process was ended by SIGKILL$",
    "stop_itself": "timeout None the check took longer than 1 s$",
    "stop_its_parent_and_exit": "error None the check process was ",
    "recurse": "error None RecursionError: ",
    "fork_and_return_twice": "scored 7.0 $",
    "fork_unseen_and_return_twice": "scored 7.0 $",
    "fork_and_raise_twice": "error None ValueError: in the parent ",
    "fork_and_leave_it_to_the_child": "error None the check process exited with status 4$",
    "crash_while_a_fork_holds_the_socket": "error None the check process exited with status 6$",
    "write_garbage": NOT_AN_ANSWER,
    "write_half_a_line": NOT_AN_ANSWER,
    "write_a_forged_answer": NOT_AN_ANSWER,
    "write_other_json": NOT_AN_ANSWER,
    "write_deep_json": NOT_AN_ANSWER,
    "write_no_utf8": NOT_AN_ANSWER,
    "write_without_end": "error None more than 16,000 bytes came from the check process, and no answer$",
    "drip": "timeout None the check took longer than 1 s$",
    "close_everything": "error None the check process exited with status 74: did the function close its socket",
    "put_a_file_in_the_place_of_the_socket": "error None the check process exited with status 74: did the function",
    "shut_the_socket": "error None the check process ",
    "patch_what_answers_are_made_with": "scored 9.0 $",
    "ignore_every_signal": "timeout None the check took longer than 1 s$",
    "leave_threads_that_print": "scored 2.0 $",
    "flood_the_output": "scored 2.0 $",
    "raise_unspeakable": "error None Unspeakable",
    "raise_endless": "timeout None the check took longer than 1 s$",
    "raise_a_long_text": "error None ValueError: xxx",
    "raise_terminal_codes": r"error None ValueError: [^\x00-\x1f]*\[/bold\]",
    **dict.fromkeys(VALUES, "error None "),
    "nothing": "unscored None $",
    "a value that hangs": "timeout None the check took longer than 1 s$",
    "a value that raises": "error None OSError: no value ",
    "a huge integer": "error None the reward function returned inf, expected a finite float$",
    "text": "error None the reward function returned str, expected a float$",
    "too much for the update": r"error None the reward function returned 1e\+300, expected at most 1e\+12 in size$",
}


@pytest.fixture(scope="module")
def checks() -> Iterator[CheckProcess]:
    """One for all cases: what a case leaves in its process must not show in another's."""
    with CheckProcess("hostile_functions:hostile", timeout_s=TIMEOUT_S) as process:
        yield process


def test_every_case_has_its_outcome() -> None:
    assert CASES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_function_harms_only_its_own_item(
    checks: CheckProcess, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_link, "EXIT_LIMIT_S", 2.0)
    texts = ["a", "bb", name, "ccc", "dddd"]
    results = checks.run(attempts(*(("p", text) for text in texts))) + checks.run(attempts(("p", "eeeee")))
    good = [(result.outcome, result.score) for position, result in enumerate(results) if position != 2]
    assert good == [("scored", float(length)) for length in range(1, 6)]
    bad = results[2]
    assert re.match(EXPECTED[name], f"{bad.outcome} {bad.score} {bad.detail}")
    assert len(bad.detail) <= LONGEST_DETAIL and (not bad.detail or bad.detail.isprintable())


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1.0), (False, 0.0), (3, 3.0), (-0.5, -0.5), (np.bool_(True), 1.0), (np.bool_(False), 0.0),
        (np.float16(0.5), 0.5), (np.float32(0.5), 0.5), (np.longdouble(0.5), 0.5), (np.int8(-3), -3.0),
        (np.array(2.5), 2.5), (np.array(True), 1.0), (np.ma.array(2.5), 2.5), (torch.tensor(2.5), 2.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(2, dtype=torch.int8), 2.0), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(1.5, requires_grad=True), 1.5), (Decimal("0.25"), 0.25), (Fraction(1, 4), 0.25),
        (type("Index", (), {"__index__": lambda self: 4})(), 4.0),
        (type("Float", (), {"__float__": lambda self: 4.5})(), 4.5),
    ],
)  # fmt: skip
def test_whatever_is_a_number_is_a_score(value: Any, score: float) -> None:
    assert as_score(value) == score and type(as_score(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        None, "1.0", b"1", bytearray(b"1"), np.str_("1.0"), np.bytes_(b"1"), np.array("1.0"), 1j, np.complex64(1),
        np.array(1j), torch.tensor(1j), [1.0], (1.0,), {1.0}, {1.0: 1.0}, np.array([1.0]), np.array([[1.0]]),
        torch.tensor([1.0]), torch.ones(2), object(), float, len, np.nan, np.float32("inf"), -np.inf,
        torch.tensor(float("nan")), Decimal("Infinity"), 10**400, Fraction(10**400), 1e13, np.array(None),
        np.ma.masked, np.ma.array(0.5, mask=True),
    ],
)  # fmt: skip
def test_whatever_is_none_is_refused(value: Any) -> None:
    with pytest.raises(MisreturnedError, match="the reward function returned"):
        as_score(value)


def left_by(mark: Path) -> list[int]:
    wait_until(lambda: mark.exists() and "done" in mark.read_text(), "the processes", 200)
    return [int(word) for word in mark.read_text().split() if word != "done"]


@pytest.mark.parametrize("ending", ["exit", "crash", "hang", "close"])
def test_what_a_check_starts_ends_with_it(tmp_path: Path, ending: str) -> None:
    """Also what lives in a session of its own, has lost its parents, and knows nothing of our environment."""
    with CheckProcess("hostile_functions:leave_processes", timeout_s=5.0) as checks:
        checks.run(attempts((str(tmp_path / "pids"), ending)))
    pids = left_by(tmp_path / "pids")
    assert len(pids) >= 4 and not any(map(alive, pids))


@pytest.mark.parametrize("guard", ["outer", "inner"])
def test_what_a_check_starts_ends_when_a_guard_is_killed(tmp_path: Path, guard: str) -> None:
    """As Ray does to what a worker has started, before the worker ends."""
    with CheckProcess("hostile_functions:leave_processes") as checks:
        checks.run(attempts((str(tmp_path / "pids"), "return")))
        assert checks.pid is not None
        (inner,) = children(checks.pid)
        pids = [*left_by(tmp_path / "pids"), *children(inner)]
        os.kill(checks.pid if guard == "outer" else inner, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "the end of what the check started", 200)
        (again,) = checks.run(attempts((str(tmp_path / "again"), "return")))
    assert again.outcome == "scored"


def test_what_a_check_starts_ends_with_its_caller(tmp_path: Path) -> None:
    program = (
        "import sys; from bgrpo.scoring.check_process import CheckProcess; from attempts import attempts\n"
        "CheckProcess('hostile_functions:leave_processes', timeout_s=100).run(attempts((sys.argv[1], 'hang')))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pids")], env=environment) as caller:
        pids = left_by(tmp_path / "pids")
        assert all(map(alive, pids))
        caller.kill()
    wait_until(lambda: not any(map(alive, pids)), "the end of what the check started", 200)


def test_the_first_call_may_take_longer_than_the_limit() -> None:
    """After each start: what a function imports at its first call does not count."""
    with CheckProcess("hostile_functions:slow_first_call", timeout_s=0.5, trial=attempt("p", "c")) as checks:
        results = checks.run(attempts(("p", "x"), ("p", "hang"), ("p", "y")))
        assert checks.pid is not None
        os.kill(checks.pid, signal.SIGKILL)
        time.sleep(0.05)
        results += checks.run(attempts(("p", "z")))
    assert [result.outcome for result in results] == ["scored", "timeout", "scored", "scored"]


@pytest.mark.parametrize(
    ("completion", "cause"),
    [
        ("exit_at_once", "the check process exited with status 3"),
        ("raise_a_long_text", "ValueError: xxx"),
        ("text", "the reward function returned str, expected a float"),
        ("write_garbage", "something else than an answer"),
    ],
)
def test_a_function_that_fails_its_trial_is_refused_in_one_line(completion: str, cause: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        CheckProcess("hostile_functions:hostile", trial=attempt("1 + 1 =", completion))
    assert f"'hostile_functions:hostile': tried on prompt '1 + 1 =' and completion '{completion}': {cause}" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("raise SystemExit(7)", "SystemExit: 7"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(9)", "on import, the check process exited with status 9"),
        ("import os; os.kill(os.getpid(), 9)", "on import, the check process was ended by SIGKILL"),
        (
            "import os; [os.write(n, b'x\\n') for n in range(3, 99) if os.path.exists(f'/proc/self/fd/{n}')]",
            "on import",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_in_one_line(
    program: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_module.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        CheckProcess("hostile_module:f")
    assert cause in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        ("Outcome.WRONG", "wrong"),
        ("'correct'", "correct"),
        ("True", "error the task's check returned bool True, expected an Outcome"),
        ("None", "error the task's check returned NoneType None"),
        ("'Correct!'", "error the task's check returned str 'Correct!'"),
        ("1 / 0", "error ZeroDivisionError: division by zero"),
    ],
)
def test_a_task_that_returns_something_else_than_an_outcome(
    returned: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "from bgrpo.tasks.base import Outcome\nclass T:\n    name = 'odd'\n    def load(self, path): ...\n"
        f"    def check(self, p, c): return {returned}\n"
    )
    (tmp_path / "odd_task.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    with CheckProcess("task:odd_task:T") as checks:
        (result,) = checks.run(attempts(("p", "c")))
    assert f"{result.outcome} {result.detail}".startswith(verdict)


FLOODS = {
    "print": "print('x' * size)",
    "standard error": "sys.stderr.write('x' * size)",
    "its descriptor": "sum(os.write(1, b'x' * 10**6) for _ in range(size // 10**6))",
    "another program": "subprocess.run(['head', '-c', str(size), '/dev/zero'])",
}


@pytest.mark.parametrize("way", FLOODS)
def test_what_a_function_prints_is_bounded_and_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "floods.py").write_text(
        "import os, subprocess, sys\n"
        "def flood(prompt, completion):\n"
        "    print('a first line', completion)\n"
        "    size = int(completion)\n"
        f"    {FLOODS[way]}\n"
        "    return size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    size = 8_000_000
    with CheckProcess("floods:flood") as process:
        verdicts = process.run([attempt("p", str(size)), attempt("q", str(size))])
    assert [verdict.score for verdict in verdicts] == [size, size]
    shown = capfd.readouterr().err
    assert shown.startswith(f"a first line {size}\n")
    assert SHOWN_BYTES < len(shown) < SHOWN_BYTES + 1000
    told = [int(number.replace(",", "")) for number in re.findall(r"check 'floods:flood': ([0-9,]+) bytes", shown)]
    assert len(told) <= 10
    assert 2 * size <= told[-1] + SHOWN_BYTES <= 2 * size + 100


def test_what_a_function_prints_before_it_is_killed_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talks.py").write_text(
        "import time\ndef talk(prompt, completion):\n    print('here', completion)\n    time.sleep(100)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with CheckProcess("talks:talk", timeout_s=0.5) as process:
        assert [verdict.outcome for verdict in process.run(attempts(("p", "x"), ("q", "y")))] == ["timeout", "timeout"]
    assert capfd.readouterr().err == "here x\nhere y\n"
