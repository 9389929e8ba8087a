"""Training, validation and test problems never share a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretrain_toy_task import ReverseTask

from bgrpo.config import TaskSection, build_config
from bgrpo.config.problems import SPLITS
from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Problem, load_task
from bgrpo.tasks.splits import hold_out, load_splits, load_test


def section(**sources: dict[str, object]) -> TaskSection:
    defaults: dict[str, dict[str, object]] = {
        name: {"count": 30, "seed": 7, "options": {"digits": 2}} for name in ("train", "validation", "test")
    }
    return build_config(TaskSection, {"name": "reverse", **defaults, **sources}, "test")


def prompts(problems: list) -> set[str]:
    return {problem.prompt for problem in problems}


def test_generated_splits_are_disjoint_even_with_one_seed() -> None:
    splits = load_splits(ReverseTask(), section())
    sets = [prompts(splits.train), prompts(splits.validation), prompts(splits.test)]
    assert [len(s) for s in sets] == [30, 30, 30]
    assert len(set.union(*sets)) == 90


def test_test_split_does_not_depend_on_the_others() -> None:
    plain = load_splits(ReverseTask(), section())
    other = load_splits(ReverseTask(), section(train={"count": 5, "seed": 1}, validation={"count": 9, "seed": 2}))
    assert plain.test == other.test


def test_files_are_cut_to_count_and_held_out_prompts_leave_training(tmp_path: Path) -> None:
    lines = [f"P {i} {j} ⁇" for i in range(10) for j in range(10)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text("\n".join(lines[:20]))
    sources = {
        "train": {"file": str(tmp_path / "train.txt"), "count": 70},
        "test": {"file": str(tmp_path / "test.txt"), "count": 15},
    }
    splits = load_splits(ReverseTask(), section(**sources))
    assert [problem.prompt for problem in splits.test] == lines[:15]
    assert not prompts(splits.train) & (prompts(splits.test) | prompts(splits.validation))
    held_out = prompts(splits.test) | prompts(splits.validation)
    assert [p.prompt for p in splits.train] == [line for line in lines if line not in held_out][:70]


@pytest.mark.parametrize("by", [None, "author"])
def test_a_test_split_that_nobody_measures_on_may_be_empty(tmp_path: Path, by: str | None) -> None:
    def load(prompts: int, needs_test: bool, **sources: dict[str, object]) -> tuple[int, int, int]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f'{{"prompt": "{n}", "author": "{n}"}}\n' for n in range(prompts)))
        tree = {"name": "text", "split_by": by, "train": {"file": str(path)}, **sources}
        splits = load_splits(load_task("text", {}), build_config(TaskSection, tree, "test"), needs_test=needs_test)
        return len(splits.train), len(splits.validation), len(splits.test)

    assert load(2, False) == (1, 1, 0)
    assert load(3, False) == load(3, True) == (1, 1, 1)
    (tmp_path / "other.jsonl").write_text('{"prompt": "other", "author": "o"}')
    own = {"validation": {"file": str(tmp_path / "other.jsonl")}}
    assert load(1, False, **own) == (1, 1, 0) and load(2, False, **own) == (1, 1, 1)
    for prompts, needs_test, sources in ((2, True, {}), (2, False, {"test": {"share": 0.3}}), (1, True, own)):
        with pytest.raises(UserError, match="nothing can be held out"):
            load(prompts, needs_test, **sources)


def test_a_training_file_is_used_as_a_whole_unless_count_says_less(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(3000)))
    whole = load_splits(load_task("text"), TaskSection.model_validate({"name": "text", "train": {"file": str(path)}}))
    assert len(whole.train) + len(whole.validation) + len(whole.test) == 3000 and not whole.notes
    keys = {"name": "text", "train": {"file": str(path), "count": 100}}
    assert load_splits(load_task("text"), TaskSection.model_validate(keys)).notes == [
        f"note: task.train: {path} has 2,707 problems, 100 of them are used: task.train.count=100"
    ]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("given", [{"file": "x"}, {"options": {"a": 1}}, {"share": 0.1}, {"count": 7}, {"seed": 9}])
def test_a_key_of_a_split_changes_no_other_key(split: str, given: dict[str, object]) -> None:
    keys = getattr(TaskSection.model_validate({split: given}), split).model_dump()
    assert keys == getattr(TaskSection(), split).model_dump() | given


def test_a_split_with_nothing_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("P 1 2 ⁇\nP 3 4 ⁇")
    source = {"file": str(tmp_path / "same.txt")}
    with pytest.raises(UserError, match="no problem left for train"):
        load_splits(ReverseTask(), section(train=source, test=source))


def rows(count: int, speakers: int = 5) -> list[Problem]:
    return [Problem(f"prompt {i}", "x", fields={"speaker": i % speakers}) for i in range(count)]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_what_is_held_out_shares_nothing_with_the_rest(values: list[int], share: float, seed: int) -> None:
    problems = [Problem(f"{i}", fields={"who": value}) for i, value in enumerate(values)]
    if len(set(values)) < 2:
        with pytest.raises(UserError, match="nothing can be held out"):
            hold_out(problems, share, seed, "who")
        return
    held, rest = hold_out(problems, share, seed, "who")
    assert held and rest and sorted(held + rest, key=lambda problem: int(problem.prompt)) == problems
    assert not {problem.fields["who"] for problem in held} & {problem.fields["who"] for problem in rest}
    largest = max(values.count(value) for value in values)
    assert len(held) <= max(largest, share * len(values) + largest / 2)
    assert len(rest) <= max(largest, (1 - share) * len(values) + largest / 2)


def test_a_share_is_as_large_as_asked_for_and_does_not_depend_on_the_order() -> None:
    problems = rows(1000)
    held, rest = hold_out(problems, 0.1, seed=3)
    assert (len(held), len(rest)) == (100, 900)
    backwards, _ = hold_out(problems[::-1], 0.1, seed=3)
    assert prompts(backwards) == prompts(held) != prompts(hold_out(problems, 0.1, seed=4)[0])


def test_the_same_prompt_stays_on_one_side() -> None:
    held, rest = hold_out(rows(50) * 3, 0.2, seed=1)
    assert len(held) == 30 and not prompts(held) & prompts(rest)


class FileTask(ReverseTask):
    """No generator: validation and test come out of the training file."""

    generate = None  # type: ignore[assignment]

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        return LoadedProblems(rows(int(path.read_text())))


def test_without_a_generator_shares_of_the_training_file_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("200")
    asked = section(train={"file": str(tmp_path / "rows")}, validation={"share": 0.2}, test={})
    splits = load_splits(FileTask(), asked)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [152, 38, 10]  # 5 %, then 20 %
    assert len(prompts(splits.train) | prompts(splits.validation) | prompts(splits.test)) == 200
    assert load_test(FileTask(), asked)[0] == splits.test


def test_a_column_keeps_its_rows_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("100")
    asked = section(train={"file": str(tmp_path / "rows")}, validation={"share": 0.2}, test={"share": 0.2})
    asked = asked.model_copy(update={"split_by": "speaker"})
    splits = load_splits(FileTask(), asked)
    speakers = [
        {problem.fields["speaker"] for problem in part} for part in (splits.train, splits.validation, splits.test)
    ]
    assert [len(part) for part in speakers] == [3, 1, 1] and len(set.union(*speakers)) == 5


@pytest.mark.parametrize(
    ("sources", "split_by", "message"),
    [
        ({"train": {"count": 5}}, None, "task.train.file is not set: task 'reverse' cannot generate"),
        ({"train": {"file": "rows", "share": 0.5}}, None, "task.train.share: training gets what"),
        ({"train": {"file": "rows"}, "test": {"file": "rows", "share": 0.5}}, None, "both a file and share=0.5"),
        (
            {"train": {"file": "rows"}, "test": {"share": 0.5}, "validation": {"share": 0.5}},
            None,
            "= 1: leaves no",
        ),
        ({"train": {"file": "rows"}, "test": {"share": 0.5}}, "who", "task.split_by=who: the problem 'prompt 0' has"),
    ],
)
def test_shares_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict, split_by: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").write_text("100")
    asked = section(**{"validation": {}, "test": {}} | sources).model_copy(update={"split_by": split_by})
    with pytest.raises(UserError, match=message):
        load_splits(FileTask(), asked)
