"""Folders that this user may not read or write, or that have gone: one line, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bgrpo
from bgrpo.cli import measure
from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.files import LOST
from bgrpo.runs.run_folder import RunFolder

PACKAGE = Path(bgrpo.__file__).parent

AS_NOBODY = """
import os, sys
from bgrpo.cli.app import main
commands = [line.split() for line in sys.argv[1].splitlines()]
for command in commands:  # what they import may not be readable later
    main(command)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for command in commands:
    print("as nobody", *command, file=sys.stderr)
    print("status", main(command), file=sys.stderr)
"""


@pytest.mark.parametrize("number", LOST, ids=os.strerror)
def test_what_the_system_says_of_a_path_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number), "/runs/a\nb/report.png")

    monkeypatch.setattr(measure, "rebuild_report", fail)
    assert main(["report", "x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: /runs/a b/report.png: {os.strerror(number)}: see to it") and told.count("\n") == 1


def test_an_error_that_names_no_path_is_no_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise PermissionError(1, "no")

    monkeypatch.setattr(measure, "rebuild_report", fail)
    with pytest.raises(PermissionError):
        main(["report", "x"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
@pytest.mark.parametrize("mode", [pytest.param(0o755, marks=pytest.mark.long), 0o700])
def test_another_users_run_may_be_looked_at_or_not_and_never_written(mode: int, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.name.startswith(("pytest-", "test_", tmp_path.name)):
            folder.chmod(0o755)
    runs = tmp_path / "runs"
    run = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={runs}", "run.name=x"]), None)
    (tmp_path / "data.txt").write_text("+ * P 2 ^ a P 4 P 1 ⁇ ^ a P 2\n")
    runs.chmod(mode)
    commands = [
        f"report {run.path}",
        f"show {run.path} --no-serve",
        f"train --local --resume {run.path} steps=9",
        f"train --local run.dir={runs} run.name=x",
        f"generate-data --count 1 --out {runs}/made.txt --overwrite",
    ]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "\n".join(commands)], cwd="/", capture_output=True, text=True, timeout=200
    )
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    package_is_open = all(folder.stat().st_mode & 0o5 == 0o5 for folder in (PACKAGE, *PACKAGE.parents))
    told = [part.splitlines() for part in done.stderr.split("as nobody ")[1:]]
    assert [lines[0] for lines in told] == commands
    for _, *said, status in told:
        assert status == "status 2" and said[0].startswith("error: ") and len(said) == 1, done.stderr
        where = (str(runs), "no run", "no sweep", *(() if package_is_open else (str(PACKAGE),)))
        assert any(each in said[0] for each in where), said
