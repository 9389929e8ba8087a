"""``bgrpo bench rollouts`` and ``bgrpo bench step`` from the command line, and their measuring processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bgrpo.bench import processes
from bgrpo.bench.processes import Measured, measure_in_process
from bgrpo.bench.rollouts import rollout_bench
from bgrpo.bench.rollouts.rollout_bench import RolloutBench
from bgrpo.bench.step import step_bench
from bgrpo.bench.turns import DisagreementError
from bgrpo.cli.app import main
from bgrpo.errors import UserError
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT


def bench(**changes: Any) -> RolloutBench:
    settings: dict[str, Any] = {
        "cases": ["tiny-2x4"], "engines": ["bgrpo", "loop"], "threads": 1, "rounds": 2, "seconds": 1.0,
        "longest": 100.0, "memory": "none",
    }  # fmt: skip
    return RolloutBench(**settings | changes)


@pytest.mark.long
def test_whole_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engines = ["--engine", "bgrpo", "--engine", "generate", "--rounds", "2"]
    png = tmp_path / "rollouts.png"
    assert main(["bench", "rollouts", "--case", "tiny-2x4", *engines, "--png", str(png), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"rows", "machine"}
    asked = [("bgrpo", "fp32", "beam"), ("generate", "fp32", "beam")]
    assert [(row["engine"], row["dtype"], row["mode"]) for row in result["rows"]] == asked
    for row in result["rows"]:
        assert row["rounds"] == 2 and row["beams_differing"] == 0
        assert 0 < row["peak_bytes"] < 2e9
    assert result["machine"]["malloc"] == ALLOCATOR_ENVIRONMENT
    assert result["machine"]["threads"] == 1
    assert png.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["rollouts", "--case", "19M-2x2"],
            "--case 19M-2x2: expected one of standard, extra, language-models, 19M-1x10",
        ),
        (["rollouts", "--engine", "vllm"], "--engine vllm: expected one of bgrpo, bgrpo-bf16, generate"),
        (["rollouts", "--memory", "some"], "--memory some: expected one of largest, all, none"),
        (["rollouts", "--png", "/"], "--png /: is a folder; give the name of a file"),
        (["step", "--part", "learners"], "--part learners: expected one of learner, sharing, run"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_turns_are_those_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five engines and samplers, one of them skipped, in a check and two rounds; then the largest case's memory."""

    def measure(function: str, request: dict[str, Any], threads: int | None, on_turn: Any) -> Measured:
        if function.endswith("measure_peak"):
            on_turn()
            return Measured(1000, {})
        rows = [{"name": name, "skipped": "slow" if name == "loop" else None} for name in request["engines"]]
        for _ in range(3 * (3 if request["case"] == "tiny-2x4" else 2)):
            on_turn()
        return Measured(rows, {"cpu": "X"})

    monkeypatch.setattr(rollout_bench, "measure_in_process", measure)
    two = bench(cases=["tiny-2x4", "tiny-sample-2x4"], engines=["bgrpo", "generate", "loop"], memory="largest")
    turns: list[int] = []
    first, second = two.run(lambda: turns.append(1))
    assert len(turns) == two.turns() == (3 + 2) * (1 + 2) + 3
    assert [row.get("peak_bytes") for row in first.rows] == [1000, 1000, None]
    assert first.machine == {"cpu": "X"} and "peak_bytes" not in second.rows[0]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that measuring processes can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path / "measuring_module.py"


def test_a_measuring_process_has_the_threads_the_allocator_and_the_request(child: Path) -> None:
    child.write_text(
        "import os\n"
        "def measure(on_turn, **request):\n"
        "    print('what libraries say')\n"
        "    on_turn()\n"
        "    return [request, os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']]\n"
    )
    turns: list[int] = []
    result, machine = measure_in_process("measuring_module:measure", {"a": [1]}, 2, lambda: turns.append(1))
    assert result == [{"a": [1]}, "2", "2"]
    assert machine["malloc"] == ALLOCATOR_ENVIRONMENT and machine["threads"] == 2
    assert turns == [1]


def test_a_failed_process_is_named(child: Path) -> None:
    child.write_text("import sys; sys.exit(7)")
    with pytest.raises(RuntimeError, match=r"measuring_module:measure .* ended with status 7"):
        measure_in_process("measuring_module:measure", {}, 1, lambda: None)


def test_a_disagreement_in_a_measuring_process_is_one_here(child: Path) -> None:
    child.write_text(
        "from bgrpo.bench.turns import DisagreementError\n"
        "def measure(on_turn):\n"
        "    raise DisagreementError('20% of the beams differ')\n"
    )
    with pytest.raises(DisagreementError, match="20%"):
        measure_in_process("measuring_module:measure", {}, 1, lambda: None)


def test_a_measuring_process_ends_with_its_parent(child: Path) -> None:
    child.write_text("import time\ndef measure(on_turn):\n    on_turn()\n    time.sleep(1000)\n")
    command = [sys.executable, "-m", processes.__name__, "measuring_module:measure", "{}", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b'{"turn": 1}\n'
        process.stdin.close()
        assert process.wait(timeout=240) == 1


@pytest.mark.parametrize(
    ("module", "arguments"), [(rollout_bench, ["rollouts", "--case", "tiny-2x4"]), (step_bench, ["step"])]
)
def test_disagreement_is_exit_status_1(
    module: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*request: object) -> Measured:
        raise DisagreementError("tiny-2x4: loop: 20% of the beams differ")

    monkeypatch.setattr(module, "measure_in_process", measure)
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: tiny-2x4: loop: 20% of the beams differ\n"


def test_all_parts_of_a_step_are_measured_unless_some_are_named() -> None:
    assert step_bench.check_parts([]) == list(step_bench.TURNS)
    assert step_bench.check_parts(["run", "learner"]) == ["learner", "run"]
    with pytest.raises(UserError, match="--part learners: expected one of learner, sharing, run"):
        step_bench.check_parts(["learners"])


@pytest.mark.long
def test_parts_of_a_step_in_their_processes() -> None:
    turns: list[int] = []
    result = step_bench.measure_parts(["learner", "sharing"], lambda: turns.append(1), size="tiny")
    assert [row["part"] for row in result["rows"]] == ["learner", "sharing", "sharing"]
    assert result["machine"]["threads"] == 1 and len(turns) == 2
