"""What commands print: any encoding, any reader, any text; and options that are numbers or paths."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import ArgumentInfo

from bgrpo.cli.app import app, main
from bgrpo.config import TrainConfig
from bgrpo.settings.key_table import all_keys, known_keys
from bgrpo.settings.typed import alternatives
from bgrpo.sweep.sweep_config import SweepConfig

PACKAGE = Path(__file__).resolve().parents[2] / "bgrpo"
BGRPO = [sys.executable, "-m", "bgrpo.cli.app"]
LINES = "^ a P 4 ⁇ ^ a P 2\n^ a P 4 ⁇ a\n"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What it says, but for the lines that a busy machine is waited with."""
    done = subprocess.run(
        [*BGRPO, *arguments], capture_output=True, env=os.environ | environment, timeout=240, check=False
    )
    said = (line for line in done.stderr.splitlines(keepends=True) if not line.startswith(b"waiting: "))
    done.stderr = b"".join(said)
    return done


class Option(NamedTuple):
    """An option of a command."""

    command: str
    kind: Any  # of its value
    info: Any  # typer's

    @property
    def flag(self) -> str:
        """Typer keeps it as the default until the command is made."""
        return str((*self.info.param_decls, self.info.default)[0])


def options_of(group: typer.Typer, prefix: str = "") -> Iterator[Option]:
    for command in group.registered_commands:
        function: Any = command.callback
        name = f"{prefix}{command.name or function.__name__.replace('_', '-')}"
        for annotation in get_type_hints(function, include_extras=True).values():
            for part in [annotation, *get_args(annotation)]:  # an optional one may stand in a union
                if get_origin(part) is Annotated and not isinstance(get_args(part)[1], ArgumentInfo):
                    kinds = {inner for kind in alternatives(part) for inner in (*get_args(kind), kind)}
                    yield from (Option(name, kind, get_args(part)[1]) for kind in (int, float, Path) if kind in kinds)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from options_of(inner.typer_instance, f"{inner.name} ")


OPTIONS = list(dict.fromkeys(options_of(app)))
NUMBERS = [option for option in OPTIONS if option.kind is not Path]
PATHS = [option for option in OPTIONS if option.kind is Path]


def named(option: Option) -> str:
    return f"{option.command} {option.flag}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_text_is_shown_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "[b]x[" / "b] ⁇ é :smile: [.txt"
    path.parent.mkdir()
    path.write_text(LINES, "utf-8")
    done = run("verify", "--data", str(path), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"{path}:2: trivial".encode(encoding, "backslashreplace") in done.stdout
    refused = run("verify", "--data", str(tmp_path / path.name), PYTHONIOENCODING=encoding)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert path.name.encode(encoding, "backslashreplace") in refused.stderr and refused.stderr.count(b"\n") == 1


def test_an_argument_that_is_no_text_is_refused_in_one_line() -> None:
    for arguments in (["train", b"run.name=\xff"], ["verify", "--data", b"/\xff"], ["train", "--config", b"\xfe"]):
        done = subprocess.run([*BGRPO, *arguments], capture_output=True, timeout=240, check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("arguments", [["options"], ["generate-data", "--help"]])
def test_a_reader_that_goes_ends_the_command_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([*BGRPO, *arguments], stdout=closed, stderr=subprocess.PIPE, timeout=240, check=False)
    assert done.stderr == b""
    assert done.returncode == 141 or "--help" in arguments, "rich ends its own printing with 1"


CLOSED = ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_are_nothing_to_read_or_write(closed: str, tmp_path: Path) -> None:
    made, data, log = (tmp_path / name for name in ("made.txt", "data.txt", "log"))
    data.write_text(LINES)
    generate = f"generate-data --degrees 2,2 --coefficients 9 --count 3 --out {made}"
    for command, status in ((generate, 0), (f"verify --data {data}", 0), ("verify --data /nothere", 2)):
        script = f"exec {shlex.join(BGRPO)} {command} >{log} 2>{log} {closed}"
        done = subprocess.run(["bash", "-c", script], timeout=240, check=False)
        assert (done.returncode, "Traceback" in log.read_text()) == (status, False), log.read_text()
    assert len(made.read_text().splitlines()) == 3, "what was opened meanwhile has no line of the terminal"


def test_a_current_folder_that_has_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for command in ("--version", "verify --data x", "train"):
        script = f"mkdir {gone}; cd {gone}; rmdir {gone}; exec {shlex.join(BGRPO)} {command}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=240, check=False)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert b"current folder cannot be used" in done.stderr


def test_a_full_disk_below_the_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*BGRPO, "options"], stdout=full, stderr=subprocess.PIPE, timeout=240, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


def test_consoles_that_read_markup_are_made_nowhere() -> None:
    """Brackets in users' texts would vanish, or end in an error; every console is a PlainConsole."""
    made = [
        f"{module.relative_to(PACKAGE)}:{node.lineno}"
        for module in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
        if [keyword.arg for keyword in node.keywords] != ["quiet"]
    ]
    assert made == []


@pytest.mark.parametrize("option", NUMBERS, ids=named)
def test_every_option_that_is_a_number_has_bounds(option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    name = option.flag
    for text in ("nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "-" + "9" * 30, "five", "true", ""):
        assert main([*option.command.split(), name, text]) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1 and len(error) < 1000


@pytest.mark.parametrize("option", PATHS, ids=named)
def test_every_option_that_is_a_path_knows_the_home_folder(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert option.info.parser("~/x") == Path("/somewhere/x")


@pytest.mark.parametrize(
    "arguments",
    ["train --config ~/x.yaml", "train --resume ~/x", "sweep --resume ~/x", "evaluate --data ~/x", "report ~/x",
     "verify --data=~/x", "evaluate --config=~/x.yaml", "chaos --undisturbed ~/x"],
)  # fmt: skip
def test_what_is_not_there_is_named_with_its_whole_path(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(arguments.split()) == 2
    assert f"{tmp_path}/x" in capsys.readouterr().err


def test_numbers_and_paths_were_found() -> None:
    assert len(NUMBERS) > 25 and len(PATHS) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --steps 5", "No such option: --steps: a configuration key has no dashes, as in steps=5 "),
        ("train --rollout.group-size 5", "as in rollout.group_size=5 "),
        ("train --steps=5", "a configuration key has no dashes, as in steps="),
        ("sweep --confirm_seeds 5", "as in confirm_seeds=5 "),
        ("pretrain --layers", "as in layers=… "),
        ("train steps 5", "override 'steps': expected key=value, for example steps=5\n"),
        ("train --lora 5", "No such option: --lora (see"),
        ("verify --steps 5", "No such option: --steps (see"),
        ("train --confg x", "Possible options: --config"),
    ],
)
def test_a_key_that_is_given_as_an_option_is_told_how_it_is_written(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_keys_of_a_configuration_are_listed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0] for line in lines] == [key.name for key in all_keys(TrainConfig)]
    assert main(["options", "learner.be"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"learner\.beta=0\.01 +weight of the KL .* \(a number from 0 to 10\^6\)\n", line)
    assert main(["options", "--for", "sweep", "--json"]) == 0
    printed = capsys.readouterr().out
    assert all(f'"{key}' in printed for key in known_keys(SweepConfig)) and '"space.KEY.min"' in printed
    assert main(["options", "learner.bta"]) == 2
    assert "did you mean 'learner.beta'" in capsys.readouterr().err


def test_files_that_are_there_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.txt"
    out.write_text("mine")
    arguments = ["generate-data", "--count", "3", "--out", str(out)]
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err and out.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(out.read_text("utf-8").splitlines()) == 3
    out.unlink()
    out.symlink_to(tmp_path / "elsewhere")
    assert main(arguments) == 2, "a link that leads nowhere is there too"


THEIRS = """
class Mine:
    name = "mine"
    def check(self, prompt, completion): return "wrong"
    def load(self, path, **options): return []
    def generate(self, options, count, seed, exclude=()): return []
    def generator_help(self): return {"length": "of a word (5)"}
"""


@pytest.mark.parametrize("order", [["--task", "theirs:Mine", "--help"], ["--help", "--task=theirs:Mine"]])
def test_the_help_of_a_task_lists_its_own_generators_options(
    order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["generate-data", *order]) == 0
    shown = capsys.readouterr().out
    assert "--length: of a word (5)" in shown and "task 'mine'" in shown and "--degrees" not in shown
    assert main(["generate-data", "--task", "nowhere:X", "--help"]) == 2
    assert "No module named 'nowhere'" in capsys.readouterr().err
