"""Loading data files: what is accepted, what is refused and how, what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Outcome, Problem, Task, load_task
from bgrpo.tasks.polynomial.task import PolynomialTask

F = "+ P 3 + * P 2 ^ a P 2 ^ a P 4"
GOOD = f"{F} ⁇ ^ a P 2"


@pytest.fixture
def task() -> Task:
    return load_task("polynomial")


def load(task: Task, folder: Path, content: str | bytes, **how: bool) -> LoadedProblems:
    path = folder / "data.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return task.load(path, **how)


def test_ring_option() -> None:
    rational = load_task("polynomial", {"ring": "QQ"})
    assert rational.check(f"{F} ⁇", "* P 2 ^ a P 2") == Outcome.CORRECT
    assert PolynomialTask().check(f"{F} ⁇", "* P 2 ^ a P 2") == Outcome.WRONG
    with pytest.raises(UserError, match="ring='RR': expected ZZ"):
        load_task("polynomial", {"ring": "RR"})


def test_generate(task: Task) -> None:
    options = {"degrees": [[2, 2]], "coefficients": 5}
    problems = task.generate(options, 20, 1)
    assert len(problems) == 20
    assert all(task.check(problem.prompt, problem.answer) == Outcome.CORRECT for problem in problems)
    assert {problem.category for problem in problems} == {"2_2"}
    assert task.generate(options, 20, 1, exclude=[problems[0].prompt])[:19] == problems[1:]
    with pytest.raises(UserError, match="did you mean 'coefficients'"):
        task.generate({"coeficients": 5}, 1, 1)


@pytest.mark.parametrize(
    "content",
    [
        f"{GOOD}\n{GOOD}\n",
        f"{GOOD}\n{GOOD}",
        f"{GOOD}\r\n\r\n  {GOOD}\r\n",
        f"\ufeff{GOOD}\n\n\n{GOOD}\n \n",
        f"{GOOD.replace('⁇', '?')}\n{GOOD} ⁇\n",
        f"{GOOD.replace(' ⁇ ', '⁇')}\n{GOOD.replace(' ', '  ')}\n".replace("  ⁇", " ⁇").replace("⁇  ", "⁇ "),
    ],
)
def test_accepted_writings(task: Task, tmp_path: Path, content: str) -> None:
    loaded = load(task, tmp_path, content, for_training=True)
    assert loaded.outcomes == {"correct": 2}
    assert [" ".join(problem.prompt.split()) for problem in loaded.problems] == [f"{F} ⁇"] * 2
    assert {(" ".join(problem.answer.split()), problem.category) for problem in loaded.problems} == {("^ a P 2", "2_2")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.txt: is empty"),
        ("\n \r\n", "data.txt: is empty"),
        (f"{GOOD}\n\n{F}\n", "data.txt:3: 0 separators in"),
        (f"{GOOD} ⁇ a\n", "data.txt:1: 2 separators"),
        ("⁇ a\n", "data.txt:1: 1 separators in '⁇ a'"),
        (f"{GOOD}\n+ a ⁇ a\n", "data.txt:2: the polynomial '\\+ a'… cannot be read: an operator lacks an operand"),
        (f"{GOOD}\n".encode() + b"+ a \xff\xfe\n", "data.txt:2: not UTF-8 text at byte 5 of the line"),
        (b"\x7fELF\0\0\0\1", "data.txt:1: 0 separators"),
        (f"{F} ⁇ a\n{F} ⁇ {F}\n", "no problem left: the own answers of all 2 lines are trivial"),
    ],
)
def test_malformed_files(task: Task, tmp_path: Path, content: str | bytes, message: str) -> None:
    for how in ({}, {"for_training": True}, {"for_training": True, "allow_bad": True}):
        with pytest.raises(UserError, match=message):
            load(task, tmp_path, content, **how)


def test_missing_file_and_folder(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        task.load(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        task.load(tmp_path)


MIXED = f"{GOOD}\n{F} ⁇ a\n{F} ⁇ ^ a P 3\n{F} ⁇ ^ a P\n"


def test_bad_lines_are_refused_for_training(task: Task, tmp_path: Path) -> None:
    message = (
        r"data.txt: 1 wrong, 1 unparseable, 1 trivial of 4 lines' own answers; mend the file, or pass "
        r"task.allow_bad_lines=true to train on it"
    )
    with pytest.raises(UserError, match=message):
        load(task, tmp_path, MIXED, for_training=True)


@pytest.mark.parametrize("how", [{}, {"for_training": True, "allow_bad": True}])
def test_trivial_lines_are_dropped_and_wrong_ones_kept(task: Task, tmp_path: Path, how: dict[str, bool]) -> None:
    loaded = load(task, tmp_path, MIXED, **how)
    assert loaded.outcomes == {"correct": 1, "trivial": 1, "wrong": 1, "unparseable": 1}
    assert [problem.answer for problem in loaded.problems] == ["^ a P 2", "^ a P 3", "^ a P"]
    assert [problem.category for problem in loaded.problems] == ["2_2", "d4", "d4"]


def test_problems_without_answer(task: Task, tmp_path: Path) -> None:
    loaded = load(task, tmp_path, f"{F} ⁇\n{GOOD}\n")
    assert loaded == LoadedProblems([Problem(f"{F} ⁇", "", "d4"), Problem(f"{F} ⁇", "^ a P 2", "2_2")], {"correct": 1})
    with pytest.raises(UserError, match=r"data\.txt:1: no answer after the separator"):
        load(task, tmp_path, f"{F} ⁇\n", for_training=True, allow_bad=True)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        (f"{F} ⁇ + P 2 ^ b P 2 & + P 1 ^ a P 2", "2_2"),
        ("^ + ^ a1 P 2 ^ a2 P 2 P 3 ? + ^ a1 P 2 ^ a2 P 2", "v2_d6"),
        ("* ^ a0 P 2 * a1 a2 ⁇ * b0 b1 & ^ a0 P 2 & * a1 a2", "v3_d4"),
        ("^ a P 4 ⁇ * b0 b1 & ^ a P 2 & ^ a P 2", "d4"),
    ],
)
def test_categories(task: Task, tmp_path: Path, line: str, label: str) -> None:
    assert load(task, tmp_path, line).problems[0].category == label


def test_real_bad_file(task: Task, shared_data: Path) -> None:
    """112 of the published answers do not compose to their own problem (signs were lost); 16 are trivial."""
    path = shared_data / "polynomial" / "validation_multi_lost_signs.txt"
    with pytest.raises(UserError, match="112 wrong, 16 trivial of 128 lines' own answers"):
        task.load(path, for_training=True)
    for loaded in (task.load(path), task.load(path, for_training=True, allow_bad=True)):
        assert loaded.outcomes == {"wrong": 112, "trivial": 16}
        assert len(loaded.problems) == 112


def test_real_good_file(task: Task, shared_data: Path) -> None:
    loaded = task.load(shared_data / "polynomial" / "test_2_2.txt", for_training=True)
    assert loaded.outcomes == {"correct": 1000}
    assert {problem.category for problem in loaded.problems} == {"2_2"}
