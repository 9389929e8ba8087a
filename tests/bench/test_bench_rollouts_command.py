"""``bgrpo bench rollouts`` from the command line, with its measuring processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bgrpo.bench.rollouts import parent
from bgrpo.bench.rollouts.cases import DisagreementError
from bgrpo.bench.rollouts.parent import RolloutBench
from bgrpo.cli.app import main


def bench(**changes: object) -> RolloutBench:
    settings: dict[str, object] = {
        "cases": ("tiny-2x4",),
        "engines": ("bgrpo", "loop"),
        "threads": 1,
        "rounds": 2,
        "seconds": 1.0,
        "longest": 100.0,
        "memory": "none",
    }
    return RolloutBench(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_whole_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "rollouts.png"
    engines = ["--engine", "bgrpo", "--engine", "generate"]
    arguments = ["bench", "rollouts", "--case", "tiny-2x4", *engines, "--rounds", "2", "--png", str(png), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"rows", "machine"}
    assert [(row["engine"], row["dtype"], row["mode"]) for row in result["rows"]] == [
        ("bgrpo", "fp32", "beam"),
        ("generate", "fp32", "beam"),
    ]
    for row in result["rows"]:
        assert row["sequences_per_s"] > 0
        assert row["floor_gap"] > 1
        assert 0 < row["peak_bytes"] < 2e9
    assert result["machine"]["malloc"] == {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
    assert result["machine"]["threads"] == 1
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--case", "19M-2x2"], "--case 19M-2x2: expected one of standard, extra, 19M-1x10"),
        (["--engine", "vllm"], "--engine vllm: expected one of bgrpo, bgrpo-bf16, generate"),
        (["--memory", "some"], "--memory some: expected one of largest, all, none"),
        (["--png", "/"], "--png /: is a folder; give the name of a file"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["bench", "rollouts", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_turns_are_those_announced() -> None:
    two = bench(cases=("tiny-2x4", "tiny-sample-2x4"), engines=("bgrpo", "generate", "loop"), memory="largest")
    assert two.turns() == (3 + 2) * (1 + 2) + 3


@pytest.fixture
def fake_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A measuring process that does what the file says."""
    monkeypatch.setattr(parent, "CHILD", "fake_measuring_process")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "fake_measuring_process.py"


def test_measuring_process_has_the_environment_and_the_request(fake_child: Path) -> None:
    fake_child.write_text(
        "import json, os, sys\n"
        "request = json.loads(sys.argv[1])\n"
        "names = ['MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS']\n"
        "print(json.dumps({'turn': 1}))\n"
        "print(json.dumps({'result': {'rows': [request], 'machine': {name: os.environ[name] for name in names}}}))\n"
    )
    turns: list[int] = []
    (result,) = bench(threads=2).run(lambda: turns.append(1))
    assert result.machine == {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "2147483647",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }
    assert result.rows == [
        {
            "case": "tiny-2x4",
            "engines": ["bgrpo", "loop"],
            "limits": {"rounds": 2, "seconds": 1.0, "longest": 100.0},
            "threads": 2,
        }
    ]
    assert turns == [1]


def test_a_failed_process_is_named(fake_child: Path) -> None:
    fake_child.write_text("import sys; sys.exit(7)")
    with pytest.raises(RuntimeError, match="tiny-2x4 ended with status 7"):
        list(bench().run(lambda: None))


def test_a_measuring_process_ends_with_its_parent() -> None:
    request = {"case": "19M-1x10", "peak_of": "loop", "threads": 1}  # some 10 s of work
    command = [sys.executable, "-m", parent.CHILD, json.dumps(request)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
        assert process.stdout is not None
        assert process.stdout.read() == b""


def test_disagreement_is_exit_status_1(fake_child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_child.write_text("import json; print(json.dumps({'disagreement': 'tiny-2x4: loop: 20% of the beams differ'}))")
    with pytest.raises(DisagreementError, match="20%"):
        list(bench().run(lambda: None))
    assert main(["bench", "rollouts", "--case", "tiny-2x4"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: tiny-2x4: loop: 20% of the beams differ\n"
