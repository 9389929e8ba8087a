"""filter, mix, overlap and histogram, as typed: what stays, what is said, and that nothing is lost or replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bgrpo.cli.app import main
from bgrpo.groups import Completion, Verdict
from bgrpo.tasks.base import Problem
from bgrpo.training import measuring

GENERATE = ["generate-data", "--degrees", "2,2", "--degrees", "2,3", "--coefficients", "2", "--leading", "positive"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.txt"
    assert main([*GENERATE, "--count", "40", "--seed", "5", "--out", str(path)]) == 0
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Problems of line 3n + 1 have their first correct beam at rank 1, of 3n + 2 at rank 4, others at none.

    Returns the lines of each batch that was decoded.
    """
    batches: list[list[int]] = []

    @contextmanager
    def knowing(policy: Any, config: Any, problems: Sequence[Problem], *rest: Any) -> Iterator[Any]:
        def decode(problems: Sequence[Problem], mode: str, width: int, seeds: Any) -> list[list[Completion]]:
            assert mode == "beam" and seeds is None
            batches.append([problem.line for problem in problems])
            if len(batches) == stop_at:
                raise KeyboardInterrupt
            groups = []
            for problem in problems:
                right = {1: 0, 2: 3}.get(problem.line % 3)
                outcomes = ["correct" if i == right else "wrong" for i in range(width)]
                groups.append([Completion([1], [0.0], True, "", Verdict(outcome)) for outcome in outcomes])
            return groups

        yield decode, problems

    stop_at = int(os.environ.get("STOP_AT", "0"))
    monkeypatch.setattr(measuring, "judged_decoder", knowing)
    return batches


def numbers(data: Path, out: Path) -> list[int]:
    """The lines of the data that are in the file, 1-based."""
    every = data.read_text("utf-8").splitlines()
    return [every.index(line) + 1 for line in out.read_text("utf-8").splitlines()]


def test_problems_are_kept_by_degrees_as_they_stand(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "some.txt"
    base = ["filter", "--data", str(data), "--out", str(out)]
    assert main([*base, "--inner", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["read"] == 40 and result["kept"] + result["left_out"]["inner"] == 40
    assert numbers(data, out) == [i + 1 for i, line in enumerate(data.read_text().splitlines()) if "a P 6 ⁇" in line]
    assert main([*base, "--inner", "3"]) == 2, "an existing file stays"
    assert "is there already" in capsys.readouterr().err
    assert main([*base, "--degree", "4", "--first", "2", "--overwrite"]) == 0
    assert "2 of" in capsys.readouterr().out and len(numbers(data, out)) == 2
    assert main(["filter", "--data", str(data), "--out", str(data), "--degree", "4", "--overwrite"]) == 2
    assert "is one of the files that are read" in capsys.readouterr().err


def test_where_nothing_stays_nothing_is_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "--data", str(data), "--out", str(tmp_path / "none.txt"), "--degree", "7"]) == 1
    assert "error: no problem of 40 stays" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_problems_are_kept_by_the_rank_of_the_first_correct_beam(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoded: list[list[int]]
) -> None:
    def kept(*options: str) -> list[int]:
        out = tmp_path / "out.txt"
        base = ["filter", "--data", str(data), "--out", str(out), "--beam-width", "5", "--batch", "16", "--overwrite"]
        assert main([*base, *options]) == 0
        return numbers(data, out)

    assert kept("--solved-by", "shipped") == [n for n in range(1, 41) if n % 3]
    assert "solved so far" in capsys.readouterr().out
    assert [len(batch) for batch in decoded] == [16, 16, 8]
    assert kept("--solved-by", "shipped", "--ranks", "2-") == [n for n in range(1, 41) if n % 3 == 2]
    assert kept("--unsolved-by", "shipped") == [n for n in range(1, 41) if n % 3 == 0]
    decoded.clear()
    assert kept("--solved-by", "shipped", "--first", "3", "--json") == [1, 2, 4]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(decoded) == 1, "no more is decoded than is needed"
    assert result["ranks"] == {"1": 2, "4": 1} and result["unsolved"] == 1
    assert result["solved_within"] == {"1": 0.5, "2": 0.5, "3": 0.5, "5": 0.75}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt"]


def test_an_interrupted_filter_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.setenv("STOP_AT", "3")
    decoded = request.getfixturevalue("decoded")
    out, kept = tmp_path / "out.txt", tmp_path / "out.txt.decoded"
    command = ["filter", "--data", str(data), "--out", str(out), "--solved-by", "shipped", "--batch", "8"]
    assert main([*command, "--beam-width", "5"]) == 130
    assert not out.exists() and kept.exists()
    kept.write_bytes(kept.read_bytes() + b'{"key": "half a li')  # as a killed process leaves it
    decoded.extend([[]])  # the count goes on: it is not stopped again
    assert main([*command, "--beam-width", "5", "--max-new-tokens", "9"]) == 2
    assert "decoded with another max_new_tokens (64, now 9)" in capsys.readouterr().err
    assert main([*command, "--beam-width", "6"]) == 2
    assert "was made of other problems" in capsys.readouterr().err
    decoded.clear()
    decoded.extend([[]] * 3)
    assert main([*command, "--beam-width", "5"]) == 0
    assert "16 of these problems had been decoded before" in capsys.readouterr().err
    assert [batch[0] for batch in decoded[3:]] == [17, 25, 33]
    assert numbers(data, out) == [n for n in range(1, 41) if n % 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt"]


def test_a_policy_solves_with_its_real_search(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ranks are those of the beams that decode writes."""
    out, beams = tmp_path / "out.txt", tmp_path / "beams.jsonl"
    options = ["--data", str(data), "--beam-width", "6", "--max-new-tokens", "20", "--threads", "1"]
    assert main(["filter", *options, "--solved-by", "shipped", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["decode", *options, "--policy", "shipped", "--out", str(beams)]) == 0
    solved = [
        any(each["outcome"] == "correct" for each in json.loads(line)["completions"])
        for line in beams.read_text("utf-8").splitlines()
    ]
    assert result["decoded"] == 40 and 0 < result["kept"] < 40
    assert numbers(data, out) == [n for n, right in enumerate(solved, start=1) if right]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degre", "4"], "No such option: --degre; did you mean --degree?"),
        (["--degree", "x"], "--degree x: expected a whole number or a range"),
        (["--outcome", "right"], "--outcome right: expected one of correct, wrong"),
        (["--ranks", "2-5"], "give --solved-by POLICY"),
        (["--solved-by", "a", "--unsolved-by", "b"], "give one of them"),
        (["--unsolved-by", "a", "--ranks", "2"], "an unsolved problem has no rank"),
        (["--exclude", "absent.txt"], "absent.txt: no such file"),
        (["absent.txt"], "absent.txt: no such file"),
        (["--solved-by", "nowhere"], "nowhere"),
        (["--task", "text"], "give a name that ends with .jsonl"),
    ],
)
def test_wrong_usage_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["filter", "--data", str(data), "--out", str(tmp_path / "out.txt"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_lists_what_the_task_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "--help"]) == 0
    assert "--outer: degree of the outer polynomial" in " ".join(capsys.readouterr().out.split())
    assert main(["filter", "--task", "text", "--help"]) == 0
    assert "--outer" not in capsys.readouterr().out


def test_mix_overlap_and_histogram_print_what_they_found(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some, mixed, png = tmp_path / "some.txt", tmp_path / "mixed.txt", tmp_path / "counts.png"
    assert main(["filter", "--data", str(data), "--out", str(some), "--inner", "3"]) == 0
    many = len(some.read_text().splitlines())
    capsys.readouterr()
    assert main(["overlap", str(some), str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["common_distinct"] == many
    mix = ["mix", "--data", f"{some}=1", "--data", f"{data}=1", "--out", str(mixed), "--seed", "42"]
    assert main([*mix, "--count", "10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["taken"] for each in result["files"]] == [5, 5] and result["files"][1]["repeated"] == many
    assert len(set(mixed.read_text().splitlines())) == 10
    assert main([*mix, "--count", "10"]) == 2
    assert main(["histogram", "--data", str(mixed), str(some), "--png", str(png)]) == 0
    shown = capsys.readouterr().out
    assert f"{10 + many} problems by outer" in " ".join(shown.split()) and "2_3" not in shown
    assert png.read_bytes().startswith(b"\x89PNG")
    assert main(["mix", "--data", f"{some}=x", "--out", str(tmp_path / "no.txt")]) == 2
    assert "expected FILE or FILE=SHARE" in capsys.readouterr().err
