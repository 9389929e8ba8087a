"""Training, validation and test problems never share a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretrain_toy_task import ReverseTask

from bgrpo.config import TaskSection, build_config
from bgrpo.errors import UserError
from bgrpo.tasks.splits import load_splits


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


def test_a_split_with_nothing_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("P 1 2 ⁇\nP 3 4 ⁇")
    source = {"file": str(tmp_path / "same.txt")}
    with pytest.raises(UserError, match="no problem left for train"):
        load_splits(ReverseTask(), section(train=source, test=source))
