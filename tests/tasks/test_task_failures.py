"""A user's task in this process: whatever its module, its class or a method does, one line says what failed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from bgrpo.cli.app import main
from bgrpo.errors import UserError
from bgrpo.tasks.base import ability, generate_problems, load_task, outcome_of

WHOLE = """
class Mine:
    name = "mine"
    def __init__(self, size=1): {init}
    def check(self, prompt, completion): {check}
    def load(self, path, **options): {load}
    def generate(self, options, count, seed, exclude=()): return []
    def verify(self, path, progress): {verify}
    def measure_speed(self, seconds): {verify}
    def generator_help(self): {verify}
    def write_data(self, *arguments): {verify}
"""
HARMLESS = {"init": "pass", "check": "return 'wrong'", "load": "return []", "verify": "return {}"}
NUMBERS = itertools.count()  # a module is imported once
RAISED = [
    "raise FileNotFoundError(2, 'No such file', 'words.txt')",
    "raise TypeError('a\\nb')",
    "raise SystemExit(3)",
    "raise BaseException('a panic of a library in Rust')",
    "raise KeyError()",
    "return 1 / 0",
    "return undefined_name",
    "raise Exception('x' * 10**6)",
    "raise Exception('\\x1b[2J \\ud800')",
    "return self.check(0, 0) if False else (lambda f: f(f))(lambda f: f(f))",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "raise UserError('mine:\\nsay this')",
]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write_module(source: str) -> str:
        name = f"theirs_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write_module


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and len(captured.err) < 3000
    assert captured.err[:-1].isprintable()
    return captured.err


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("where", ["init", "load", "check", "verify"])
def test_whatever_it_raises(what: str, where: str, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = "from bgrpo.errors import UserError\n" + WHOLE.format(**HARMLESS | {where: what})
    name = f"{write(source)}:Mine"
    Path("x.txt").write_text("x\n")
    if where == "init":
        one_line(capsys, "verify", "--task", name, "--data", "x.txt")
        one_line(capsys, "evaluate", "--task", name, "--data", "x.txt")
        one_line(capsys, "generate-data", "--task", name, "--count", "1", "--out", "new.txt")
    elif where == "load":
        one_line(capsys, "evaluate", "--task", name, "--data", "x.txt")
        one_line(capsys, "decode", "--task", name, "--data", "x.txt", "--out", "new.txt")
    elif where == "check":
        with pytest.raises(UserError):
            outcome_of(load_task(name), "prompt", "completion")
    else:
        one_line(capsys, "verify", "--task", name, "--data", "x.txt")
        one_line(capsys, "bench", "task", "--task", name, "--seconds", "0.1")
        one_line(capsys, "generate-data", "--task", name, "--help")
        one_line(capsys, "generate-data", "--task", name, "--count", "1", "--out", "new.txt")


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ("[]", "0 problems with 0 different prompts, 0 of them"),
        ("[Problem('a', '')] * count", "3 problems with 1 different prompts, 0 of them"),
        ("[Problem(str(i), '') for i in range(count - 1)]", "2 problems with 2 different prompts, 0 of them"),
        ("[Problem(str(i), '') for i in range(count + 1)]", "4 problems with 4 different prompts, 0 of them"),
        ("[Problem(exclude[0], ''), Problem('a', ''), Problem('b', '')]", "3 problems with 3 different prompts, 1 of"),
    ],
)
def test_other_problems_than_were_asked_for_are_told(problems: str, told: str, write: Any) -> None:
    source = "from bgrpo.tasks.base import Problem\n" + WHOLE.replace("return []", f"return {problems}", 1)
    task = load_task(f"{write(source.format(**HARMLESS))}:Mine")
    with pytest.raises(UserError, match=f"returned {told}.*expected 3"):
        generate_problems(task, {}, 3, 0, ["held out"])


@pytest.mark.parametrize(
    "returned",
    ["None", "3", "[]", "{1: 2}", "{'outcomes': 'x'}", "{'lines': 'many'}", "object()", "'text'", "{'a': {'b': []}}"],
)
def test_whatever_it_returns(returned: str, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{write(WHOLE.format(**HARMLESS | {'verify': f'return {returned}', 'load': f'return {returned}'}))}:Mine"
    for arguments in (["verify", "--data", "x"], ["evaluate", "--data", "x"], ["bench", "task", "--seconds", "0.1"]):
        error = one_line(capsys, *arguments, "--task", name)
        assert "returned" in error or "is no good for" in error


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", "SyntaxError: "),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("import sys; sys.exit('bye')\n", "SystemExit: bye"),
        ("import no_such_module_at_all\n", "cannot import it (No module named 'no_such_module_at_all')"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise OSError(2, 'No such file', 'x')\n", "FileNotFoundError: "),
        ("class Mine: pass\n", "is a type without check(), load()"),
        ("Mine = 3\n", "expected the class of a task"),
        ("Mine = None\n", "has no Mine"),
        ("Mien = 1\n_Mime = 2\n", "has no Mine; did you mean Mien?"),
        ("def Mine(): pass\n", "is a function without check(), load(), expected the class of a task"),
        ("def __getattr__(name): raise RuntimeError(name)\n", "RuntimeError: "),
        ("\x00", "importing"),
        (WHOLE.format(**HARMLESS).replace('name = "mine"', ""), "Mine has no name"),
        (WHOLE.format(**HARMLESS).replace('"mine"', "3"), "Mine has no name"),
    ],
)
def test_a_module_that_is_no_good(source: str, message: str, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = write(source)
    error = one_line(capsys, "verify", "--task", f"{name}:Mine", "--data", "x.txt")
    assert f"task.name='{name}:Mine'" in error and message in error


@pytest.mark.parametrize(
    "name",
    ["os:system", "os:getcwd", "subprocess:Popen", "builtins:exec", "builtins:dict", "os:path", "os:", ":x", "os",
     "..:x", "a..b:c",
     ".os:x", "os:system.x", "json:JSONDecoder", "bgrpo.tasks.base:Task", "\x00:x", "x" * 5000 + ":y"],
)  # fmt: skip
def test_what_is_no_task_is_never_called(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = tmp_path / "made"
    for option in (f"command=touch {made}", f"args=['touch', '{made}']", "x=1"):
        one_line(capsys, "verify", "--task", name, "--task-option", option, "--data", "x.txt")
    assert not made.exists()


def test_an_ability_that_is_no_method_is_missing() -> None:
    task = load_task("polynomial")
    task.verify = 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no method verify"):
        ability(task, "verify", "bgrpo verify")
