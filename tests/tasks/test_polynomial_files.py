"""Checking and writing whole data files."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from bgrpo.errors import UserError
from bgrpo.tasks.base import listed
from bgrpo.tasks.polynomial import speed
from bgrpo.tasks.polynomial.data_files import generate_file, verify_file
from bgrpo.tasks.polynomial.generator import generate
from bgrpo.tasks.polynomial.options import GeneratorOptions

F = "+ P 3 + * P 2 ^ a P 2 ^ a P 4"
OPTIONS = GeneratorOptions(degrees=((2, 2), (2, 3)), coefficients=5)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_verify_counts_every_outcome(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    answers = ["^ a P 2", "a", "^ a P 3", "+ a", "* P 2 ^ a P 2"]
    path.write_text("\n".join(f"{F} ⁇ {answer}" for answer in answers) + "\n\n+ ⁇ a", "utf-8")
    result = verify_file(path)
    assert list(result) == ["outcomes", "lines", "microseconds_per_check", "first_bad"]
    assert result["outcomes"] == {
        **listed({}), "correct": 1, "trivial": 1, "wrong": 2, "unparseable": 2
    }  # fmt: skip
    assert result["lines"] == 6
    assert result["first_bad"] == [
        {"line": 2, "outcome": "trivial"},
        {"line": 3, "outcome": "wrong"},
        {"line": 4, "outcome": "unparseable"},
        {"line": 5, "outcome": "wrong"},
        {"line": 7, "outcome": "unparseable"},
    ]
    assert verify_file(path, "QQ")["outcomes"]["correct"] == 2
    path.write_text(f"{F} ⁇ a\n" * 12, "utf-8")
    assert [bad["line"] for bad in verify_file(path)["first_bad"]] == list(range(1, 11))


def test_verify_real_files(shared_data: Path) -> None:
    folder = shared_data / "polynomial"
    bad = verify_file(folder / "validation_multi_lost_signs.txt")
    assert (bad["outcomes"]["wrong"], bad["outcomes"]["trivial"], bad["lines"]) == (112, 16, 128)
    assert len(bad["first_bad"]) == 10
    seen: list[int] = []
    good = verify_file(folder / "test_4_4.txt", progress=seen.append)
    assert good["outcomes"]["correct"] == good["lines"] == 1000
    assert good["first_bad"] == [] and seen == [1000]


def test_verify_refuses_what_is_not_a_data_file(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text(f"{F} ⁇ a\nhello\n", "utf-8")
    with pytest.raises(UserError, match=r"data\.txt:2: 0 separators"):
        verify_file(path)


def test_written_file_holds_the_generated_problems(tmp_path: Path) -> None:
    out = tmp_path / "new" / "train.txt"
    seen: list[int] = []
    generate_file(OPTIONS, 2500, 3, out, progress=seen.append)
    expected = [problem.line for problem in generate(OPTIONS, 2500, 3)]
    assert out.read_text("utf-8") == "".join(f"{line}\n" for line in expected)
    assert seen == [1000, 2000, 2500]
    assert verify_file(out)["outcomes"]["correct"] == 2500
    assert names_in(out.parent) == ["train.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask


def test_any_number_of_workers_writes_the_same_file(tmp_path: Path) -> None:
    exclude = [problem.prompt for problem in generate(OPTIONS, 100, 3)]
    for workers in (1, 3):
        generate_file(OPTIONS, 5000, 3, tmp_path / f"{workers}.txt", workers, exclude=exclude)
    assert (tmp_path / "1.txt").read_bytes() == (tmp_path / "3.txt").read_bytes()
    written = {line.split("⁇")[0] + "⁇" for line in (tmp_path / "1.txt").read_text("utf-8").splitlines()}
    assert len(written) == 5000 and not written & set(exclude)
    assert {problem.prompt for problem in generate(OPTIONS, 5000, 3)} >= set(exclude)  # they would have come


def test_nothing_half_written_when_there_are_too_few_problems(tmp_path: Path) -> None:
    out = tmp_path / "train.txt"
    out.write_text("older", "utf-8")
    with pytest.raises(UserError, match="only 126 of 1000 distinct problems"):
        generate_file(GeneratorOptions(coefficients=1), 1000, 0, out)
    assert out.read_text("utf-8") == "older"
    assert names_in(tmp_path) == ["train.txt"]


def test_nothing_half_written_when_interrupted(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_file(OPTIONS, 3000, 0, tmp_path / "train.txt", progress=interrupt)
    assert names_in(tmp_path) == []


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"train\.txt: cannot be written: No space left on device"):
        generate_file(OPTIONS, 10, 0, tmp_path / "train.txt")
    assert names_in(tmp_path) == []


def test_no_space_left_while_writing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a write beyond really fails
    try:
        with pytest.raises(UserError, match=r"train\.txt: cannot be written: File too large"):
            generate_file(OPTIONS, 2000, 0, tmp_path / "train.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == []


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        generate_file(OPTIONS, 10, 0, tmp_path / "file" / "train.txt")
    with pytest.raises(UserError, match=r"cannot be written: Is a directory"):
        generate_file(OPTIONS, 10, 0, tmp_path)
    with pytest.raises(UserError, match="count=0, workers=1: both must be 1 or more"):
        generate_file(OPTIONS, 0, 0, tmp_path / "train.txt")


def test_benchmark() -> None:
    result = speed.measure_speed(seconds=0.05)
    assert result["lines_per_s"].keys() == {"single_4_4", "multi_3"}
    assert result["speed_up"]["check"] == pytest.approx(12_000 / result["microseconds_per_check"])
    assert result["speed_up"]["multi_3"] == pytest.approx(result["lines_per_s"]["multi_3"] / 106)
