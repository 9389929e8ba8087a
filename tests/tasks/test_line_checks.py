"""Large data files are checked by several processes: the result is that of one, and nothing stays of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgrpo.errors import RunError, UserError
from bgrpo.tasks.base import load_file
from bgrpo.tasks.polynomial import data_files, line_checks
from bgrpo.tasks.polynomial.data_files import MAX_LINE_BYTES, generate_file, read_lines
from bgrpo.tasks.polynomial.options import GeneratorOptions
from bgrpo.tasks.polynomial.task import PolynomialTask

LINES = 400
F = "+ P 3 + * P 2 ^ a P 2 ^ a P 4"


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, for any file, in blocks of a few lines."""
    monkeypatch.setattr(line_checks, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(data_files, "BLOCK_BYTES", 4000)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("data") / "lines.txt"
    generate_file(GeneratorOptions(degrees=((2, 2), (2, 3)), coefficients=9), LINES, 1, path)
    return path.read_bytes().splitlines(keepends=True)


def result(path: Path, **how: Any) -> object:
    """The problems and outcomes, or why the file is refused."""
    try:
        return PolynomialTask().load(path, **how)
    except UserError as error:
        return str(error)


def children() -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.endswith("bgrpo.tasks.polynomial.line_checks")]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = len(children())
    yield
    assert len(children()) <= before


CHANGES: dict[str, dict[int, bytes]] = {
    "nothing": {},
    "a byte order mark and blank lines": {0: b"\xef\xbb\xbf\r\n\n", 200: b"\n \t\n", LINES - 1: b"\n\n"},
    "trivial, wrong, unparseable and unknown answers": {
        50: f"{F} ⁇ a\n".encode(), 150: f"{F} ⁇ ^ a P 3\n".encode(), 250: f"{F} ? + a\n".encode(),
        350: f"{F} ⁇\n".encode(),
    },
    "no last line feed": {LINES - 1: f"{F} ⁇ ^ a P 2".encode()},
    "a line without separator": {310: b"hello\n"},
    "no UTF-8 after a bad polynomial": {300: "+ a ⁇ a\n".encode(), 302: b"\xff\n"},
    "a bad polynomial after no UTF-8": {300: b"+ a \xff\n", 399: "+ a ⁇ a\n".encode()},
    "a line that is too long after a bad one": {10: b"?\n", 12: b"a" * (MAX_LINE_BYTES + 20_000)},
    "a line that is too long": {100: b"?" * (MAX_LINE_BYTES + 20_000)},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_several_processes_give_what_one_gives(
    change: str, lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"".join(CHANGES[change].get(number, line) for number, line in enumerate(lines)))
    ways: list[dict[str, Any]] = [{}, {"for_training": True}]
    expected = [result(path, **how) for how in ways]
    monkeypatch.setattr(line_checks, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(data_files, "BLOCK_BYTES", 4000)
    assert [result(path, **how) for how in ways] == expected
    if change in ("nothing", "no last line feed"):
        assert len(expected[1].problems) == LINES  # type: ignore[attr-defined]


def test_small_files_need_no_process(lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.txt").write_bytes(b"".join(lines))
    monkeypatch.setattr(line_checks, "_child", lambda: pytest.fail("a process was started"))
    assert len(PolynomialTask().load(tmp_path / "data.txt").problems) == LINES


def test_progress_comes_with_every_block(several: None, lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"".join(lines))
    seen: list[tuple[int, int | None]] = []
    load_file(PolynomialTask(), tmp_path / "data.txt", progress=lambda *counts: seen.append(counts))
    assert len(seen) > 10 and seen[-1] == (LINES, LINES)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(total is not None and abs(total - LINES) < 0.3 * LINES for _, total in seen)


def test_interrupted_at_any_block_no_process_stays(several: None, lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"".join(lines))

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PolynomialTask().load(tmp_path / "data.txt", progress=interrupt)
    assert children() == []


def test_a_killed_program_leaves_no_process(lines: list[bytes], tmp_path: Path) -> None:
    """Neither by SIGKILL, nor is its own main module run again in the processes."""
    (tmp_path / "data.txt").write_bytes(b"".join(lines))
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from bgrpo.tasks.polynomial import data_files, line_checks\n"
        "from bgrpo.tasks.polynomial.task import PolynomialTask\n"
        "line_checks.PARALLEL_BYTES, data_files.BLOCK_BYTES = 0, 4000\n"
        "os.sched_getaffinity = lambda pid: {0, 1, 2}\n"
        "print('main', flush=True)\n"
        "end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"PolynomialTask().load(Path({str(tmp_path / 'data.txt')!r}), progress=end)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "main\n", "")
    deadline = time.monotonic() + 60
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "noticed"), [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGSTOP, False)]
)
def test_a_lost_or_stopped_process_ends_the_load_with_a_line(
    number: int, noticed: bool, several: None, lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.txt").write_bytes(b"".join(lines))
    monkeypatch.setattr(line_checks, "BLOCK_LIMIT_S", 2.0)
    ask = line_checks._ask

    def ask_a_lost_one(child: subprocess.Popen[bytes], *rest: Any) -> Any:
        os.kill(child.pid, number)
        if noticed:  # its end comes before the first byte for it
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        return ask(child, *rest)

    monkeypatch.setattr(line_checks, "_ask", ask_a_lost_one)
    with pytest.raises(RunError, match=r"data\.txt: the process that checked its lines from \d+ on was lost"):
        PolynomialTask().load(tmp_path / "data.txt")


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_what_may_have_no_end_is_not_opened(path: str, tmp_path: Path) -> None:
    place = tmp_path / path  # an absolute path stays
    if path == "pipe":
        os.mkfifo(place)
    for read in (PolynomialTask().load, lambda path: list(read_lines(path))):
        with pytest.raises(UserError, match="Is a pipe, socket or device, expected a file"):
            read(place)
