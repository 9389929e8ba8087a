"""Streams of data files: selecting, counting, comparing and mixing problems of any task."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from bgrpo.errors import UserError
from bgrpo.tasks.base import load_task
from bgrpo.tasks.data_streams import grid_of, quantities_of, stream
from bgrpo.tasks.histogram import compare_files, count_problems
from bgrpo.tasks.mixing import Source, mixture, plan_mixture
from bgrpo.tasks.selection import Bounds, Selection, kept, keys_in, quantity_bounds

POLYNOMIAL = load_task("polynomial")
TEXT = load_task("text")
HARD = "^ a P 1 6 ⁇ ^ a P 4"
EASY = "+ P 1 ^ a P 4 ? ^ a P 2"


def ignore(done: int) -> None: ...


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


@pytest.mark.parametrize("name", ["test_3_3", "validation_single", "validation_multi", "validation_on_singlets"])
def test_a_stream_gives_what_loading_gives(shared_data: Path, name: str) -> None:
    path = shared_data / "polynomial" / f"{name}.txt"
    streamed = [record.problem for record in stream(POLYNOMIAL, path)]
    assert streamed == POLYNOMIAL.load(path).problems
    again = [record.text for record in stream(POLYNOMIAL, path)]
    assert [" ".join(line.replace("?", "⁇").split()) for line in path.read_text("utf-8").splitlines()] == again


def test_degrees_of_every_kind_of_problem(shared_data: Path, tmp_path: Path) -> None:
    _, quantify = quantities_of(POLYNOMIAL)
    path = shared_data / "polynomial" / "test_4_4.txt"
    assert {tuple(quantify(r.problem).values()) for r in stream(POLYNOMIAL, path)} == {(16, 1, 4, 4)}
    several = lines(
        tmp_path / "several.txt",
        "+ ^ a0 P 4 ^ a1 P 4 ⁇ + ^ b0 P 2 ^ b1 P 2 & ^ a0 P 2 & ^ a1 P 2",
        "^ a P 6 ⁇ ^ b P 3 & ^ a P 2",
        "^ a P 6 ⁇",
        "^ a P 6 ⁇ ^ a P 4",
        "^ a P ⁇ ^ a P 4",
        "^ a P 6 ⁇ + a",
    )
    found = [quantify(record.problem) for record in stream(POLYNOMIAL, several)]
    assert found == [
        {"degree": 4, "variables": 2, "inner": 2, "outer": 2},
        {"degree": 6, "variables": 1, "inner": 2, "outer": 3},
        {"degree": 6, "variables": 1},
        {"degree": 6, "variables": 1, "inner": 4},
        {},
        {"degree": 6, "variables": 1},
    ]
    assert grid_of(POLYNOMIAL) == ("outer", "inner")
    assert grid_of(TEXT) is None


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("4", [4], [3, 5]), ("2-4", [2, 4], [1, 5]), ("2-", [2, 10**9], [1]), ("-4", [0, 4], [5]), ("0", [0], [1])],
)
def test_ranges(text: str, inside: list[int], outside: list[int]) -> None:
    bounds = Bounds.parse("--degree", text)
    assert all(number in bounds for number in inside) and not any(number in bounds for number in outside)


@pytest.mark.parametrize("text", ["", "-", "4-2", "a", "2-4-6", "1.5", "²", "9" * 30])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--degree"):
        Bounds.parse("--degree", text)


def test_a_selection_tests_everything_that_is_asked(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.txt", HARD, EASY, HARD, "^ a P 4 ⁇ ^ a P 3", "^ a P 8 ⁇ ^ a P 2")
    left_out: Counter[str] = Counter()

    def selected(**asked: object) -> list[int]:
        left_out.clear()
        tests = Selection(POLYNOMIAL, **asked).tests()  # type: ignore[arg-type]
        return [r.problem.line for r in kept(stream(POLYNOMIAL, path), tests, lambda name: left_out.update([name]))]

    assert selected() == [1, 2, 3, 4, 5]
    assert selected(quantities=quantity_bounds(POLYNOMIAL, {"degree": 16})) == [1, 3]
    assert left_out == {"degree": 3}
    assert selected(quantities=quantity_bounds(POLYNOMIAL, {"outer": [2, "4-"]})) == [1, 2, 3, 5]
    assert selected(categories=["2_2"]) == [2]
    assert selected(outcomes=["wrong"]) == [4]
    assert selected(distinct=True) == [1, 2, 4, 5]
    assert left_out == {"repeated": 1}
    same = lines(tmp_path / "other.txt", "+ ^ a P 4 + P 3 N 2 ⁇ ^ a P 2")  # EASY in another writing
    assert selected(exclude=keys_in(POLYNOMIAL, [same])) == [1, 3, 4, 5]
    assert selected(quantities={"prompt_words": [Bounds(0, 4)], "answer_words": [Bounds(4, 4)]}) == []
    assert left_out == {"prompt_words": 5}
    assert selected(quantities={"answer_words": [Bounds(5, 9)]}) == [] and left_out == {"answer_words": 5}
    with pytest.raises(UserError, match=r"--outr; did you mean --outer\?"):
        quantity_bounds(POLYNOMIAL, {"outr": 4})
    with pytest.raises(UserError, match="has no quantities to select by"):
        quantity_bounds(TEXT, {"turns": 4})


def test_counts_by_everything_that_the_task_tells(tmp_path: Path) -> None:
    found = count_problems(POLYNOMIAL, [lines(tmp_path / "data.txt", HARD, EASY, HARD, "^ a P 5 ⁇ a")], ignore)
    assert found["problems"] == 4
    assert found["grid"] == {"rows": "outer", "columns": "inner", "cells": [[2, 2, 1], [4, 4, 2], [5, 1, 1]]}
    assert found["by"]["degree"] == {"4": 1, "5": 1, "16": 2}
    assert found["by"]["answer_words"] == {"1": 1, "4": 3}
    rows = lines(tmp_path / "chat.jsonl", *(json.dumps({"prompt": "a b", "category": name}) for name in "xyx"))
    assert count_problems(TEXT, [rows], ignore)["by"]["category"] == {"x": 2, "y": 1}


def test_files_are_compared_whatever_their_writing(tmp_path: Path) -> None:
    first = lines(tmp_path / "first.txt", HARD, EASY, EASY)
    second = lines(tmp_path / "second.txt", "+ ^ a P 4 P 1 ⁇ ^ a P 2", "^ a P 9 ⁇ ^ a P 3")
    assert compare_files(POLYNOMIAL, first, second, ignore) == {
        "first": 3, "first_distinct": 2, "second": 2, "second_distinct": 2, "common_distinct": 1,
        "first_in_second": 2, "second_in_first": 1,
    }  # fmt: skip


def test_a_mixture_has_its_shares_and_no_problem_twice(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"question {i}"}) for i in range(100)]
    hard = lines(tmp_path / "hard.jsonl", *rows[:20])
    rest = lines(tmp_path / "rest.jsonl", *rows)
    sources = [Source(hard, Fraction(1)), Source(rest, Fraction("0.5"))]

    def mixed(count: int | None, seed: int) -> list[str]:
        return [record.text for record in mixture(TEXT, plan_mixture(TEXT, sources, count, ignore), seed)]

    most = mixed(None, 42)
    assert len(most) == len(set(most)) == 30
    assert sum(text in rows[:20] for text in most) == 20
    few = mixed(12, 42)
    assert few == mixed(12, 42) != mixed(12, 43)
    assert sum(text in rows[:20] for text in few) == 8
    assert [text for text in rows if text in few] != few, "the files are interleaved"
    with pytest.raises(UserError, match=r"hard.jsonl: has 20 problems, 34 are wanted"):
        mixed(51, 1)
    with pytest.raises(UserError, match="every file needs at least one problem"):
        mixed(1, 1)


def test_every_set_of_lines_is_drawn_as_often(tmp_path: Path) -> None:
    """2 of 4 lines: 6 sets, each with chance 1/6; 5 standard errors."""
    path = lines(tmp_path / "rows.jsonl", *(json.dumps({"prompt": name}) for name in "abcd"))
    plan = plan_mixture(TEXT, [Source(path, Fraction(1))], 2, ignore)
    drawn = Counter(
        "".join(sorted(record.problem.prompt for record in mixture(TEXT, plan, seed))) for seed in range(1200)
    )
    assert set(drawn) == {"ab", "ac", "ad", "bc", "bd", "cd"}
    assert all(abs(count - 200) < 5 * (1200 * 5 / 36) ** 0.5 for count in drawn.values())


class LoadingTask:
    """A user's task without ``records``, whose problems name their lines."""

    name = "loading"

    def __init__(self, numbered: bool = True) -> None:
        self.numbered = numbered

    def check(self, prompt: str, completion: str) -> str:
        return "correct"

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> object:
        from bgrpo.tasks.base import LoadedProblems, Problem

        texts = path.read_text("utf-8").splitlines()
        return LoadedProblems(
            [Problem(text[:1], text[1:], line=n * self.numbered) for n, text in enumerate(texts, 1) if text != "skip"]
        )


def test_lines_of_a_task_that_only_loads_are_copied(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.txt", "a1", "skip", "b2")
    assert [record.text for record in stream(LoadingTask(), path)] == ["a1", "b2"]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no method records"):
        list(stream(LoadingTask(numbered=False), path))  # type: ignore[arg-type]


def test_rows_of_text_keep_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,turns\nwhy?,so,3\n")
    (record,) = stream(TEXT, path)
    assert json.loads(record.text) == {"question": "why?", "answer": "so", "turns": "3"}
    again = lines(tmp_path / "again.jsonl", record.text)
    assert TEXT.load(again).problems[0].prompt == "why?"
