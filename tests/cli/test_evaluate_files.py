"""evaluate on several files, before and after, into a folder; and that it goes on where it was interrupted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bgrpo.cli.app import main
from bgrpo.errors import UserError
from bgrpo.evaluation.decode_journal import journaled
from bgrpo.evaluation.decoders import LocalDecoder
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.groups import Completion, Verdict
from bgrpo.tasks.base import Problem

FEW = ["--samples", "3", "--beam-width", "4", "--max-new-tokens", "20", "--threads", "1", "--problems", "9"]
GENERATE = ["generate-data", "--coefficients", "2", "--leading", "positive", "--count", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for name, degrees in (("easy", "2,2"), ("hard", "2,3")):
        assert main([*GENERATE, "--degrees", degrees, "--out", str(path / f"{name}.txt")]) == 0
    (path / "README.md").write_text("no data\n")
    return path


@pytest.fixture(scope="module")
def knows_nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bgrpo.policies.io import save_policy
    from bgrpo.policies.model import build_policy
    from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(0, 0)
    path = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(build_policy(tokenizer, layers=1, heads=2, width=8, context=128, seed=3), tokenizer, path)
    return path


def test_files_of_a_folder_make_one_table(
    folder: Path, knows_nothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    command = ["evaluate", *FEW, "--before", str(knows_nothing), "--data", str(folder), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in out.iterdir()) == ["degrees.png", "evaluation.json", "table.csv"]
    assert tree == json.loads((out / "evaluation.json").read_text("utf-8"))
    assert [(each["file"], each["problems"]) for each in tree["files"]] == [("easy.txt", 9), ("hard.txt", 9)]
    assert (out / "degrees.png").read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    assert main(["evaluate", *FEW, "--data", str(folder / "easy.txt"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    easy = tree["files"][0]
    assert easy["after"]["metrics"] == alone["metrics"], "a file is measured alike alone and among others"
    assert easy["after"]["solved_within"] == alone["solved_within"]
    assert easy["before"]["metrics"]["greedy"]["mean"] == 0 < easy["after"]["metrics"]["greedy"]["mean"]
    assert easy["difference"]["beam@4"]["mean"] == easy["after"]["metrics"]["beam@4"]["mean"]
    assert [cell[:2] for cell in tree["by_degrees"]["beam@4"]["after"]] == [[2, 2], [2, 3]]
    assert tree["by_degrees"]["beam@4"]["after"][0][2] == alone["metrics"]["beam@4"]["mean"]

    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["file"], row["policy"], row["category"], row["metric"]): row["mean"] for row in rows}
    assert float(found["easy.txt", "after", "", "oracle"]) == pytest.approx(
        alone["metrics"]["oracle"]["mean"], rel=1e-5
    )
    assert ("hard.txt", "difference", "", "greedy") in found and ("hard.txt", "before", "2_3", "pass@3") in found

    assert main(command) == 2
    assert "holds results already" in capsys.readouterr().err
    files = [str(folder / "easy.txt"), str(folder / "hard.txt")]
    assert main(["evaluate", *FEW, "--data", *files]) == 0
    shown = capsys.readouterr().out
    assert "easy.txt" in shown and "hard.txt" in shown and "oracle" in shown


def test_an_interrupted_evaluation_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    decode = LocalDecoder.__call__

    def interrupted(self: LocalDecoder, problems: Sequence[Problem], *rest: Any) -> list[list[Completion]]:
        calls.append(rest[0])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return decode(self, problems, *rest)

    monkeypatch.setattr(LocalDecoder, "__call__", interrupted)
    out, command = tmp_path / "out", ["evaluate", *FEW, "--data", str(folder)]
    assert main([*command, "--out", str(out)]) == 130
    assert [path.name for path in out.iterdir()] == ["decoded"]
    assert main([*command, "--out", str(out), "--temperature", "0.7"]) == 2
    assert "with another temperature (1.0, now 0.7)" in capsys.readouterr().err
    assert main([*command, "--out", str(out)]) == 0
    assert "45 of the decoded problems had been decoded before" in capsys.readouterr().err
    assert len(calls) == 6 + 3, "four searches of two files, five of them not again"
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    for name in ("evaluation.json", "table.csv"):
        assert (out / name).read_text("utf-8") == (tmp_path / "whole" / name).read_text("utf-8")


def flipped(line: bytes) -> bytes:
    """The lowest bit of the first digit."""
    place = next(at for at in range(len(line)) if chr(line[at]).isdigit())
    return line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("damage", [flipped, lambda line: b"[" * 100_000 + b"\n", lambda line: b"[1]\n"])
def test_a_damaged_record_of_decoding_is_refused_in_one_line(
    tmp_path: Path, at: int, damage: Callable[[bytes], bytes]
) -> None:
    path, of, verdict = tmp_path / "decoded", {"temperature": 1.0}, Verdict("correct", 1.0)

    def decode(problems: Sequence[Problem], *_: Any) -> list[list[Completion]]:
        return [[Completion([], [], True, "", verdict)] for _ in problems]

    def call() -> list[list[Completion]]:
        with journaled(path, of) as journal:
            found = journal.over(decode)([Problem("p", "a")], "beam", 1, None)
            shutil.copy(path, tmp_path / "kept")
        return found

    call()
    shutil.copy(tmp_path / "kept", path)
    assert call()[0][0].judged == verdict
    lines = (tmp_path / "kept").read_bytes().splitlines(keepends=True)
    lines[at] = damage(lines[at])
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"decoded: is (no record of decoding, or )?damaged.*remove it"):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--before", "shipped"], "give --data FILE"),
        (["--data", "easy.txt", "--data", "easy.txt"], "is named twice"),
        (["--data", "easy.txt", "absent.txt"], "absent.txt: no such file"),
        (["--data", "easy.txt", "--out", "easy.txt"], "cannot be made or read as a folder"),
        (["--data", "easy.txt", "--out", "."], "is no result of this command"),
        (["--data", "empty"], "is a folder without data files"),
        (["--data", "easy.txt", "--temperature", "0"], "--temperature"),
    ],
)
def test_wrong_usage_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_ranks_that_are_none_are_refused() -> None:
    tree = {"categories": ["a"], "values": {}, "ranks": {"10": [3]}}
    assert Evaluation.from_dict(tree).solved_within()["10"] == [0, 0, *[1] * 8]
    for ranks in ({"10": [0]}, {"10": [1, 2]}, {"x": [1]}, {"10": ["1"]}):
        with pytest.raises(ValueError, match="ranks: expected"):
            Evaluation.from_dict(tree | {"ranks": ranks})
