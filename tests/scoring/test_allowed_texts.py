"""Files of completions that are allowed: what is read, and what is told of lines that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from learner_cases import EOS, TOKENIZER, train_config

from bgrpo.errors import UserError
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.text import set_end_tokens
from bgrpo.scoring.allowed_texts import allowed_of_file


def test_texts_and_columns_of_json_lines_give_the_same_tree(tmp_path: Path) -> None:
    plain, lines = tmp_path / "items.txt", tmp_path / "items.jsonl"
    plain.write_text("t3 t4\n\nt3 t5 t6\nt3 t4\n")
    lines.write_text('{"title": "t3 t5 t6", "price": 3}\n{"title": "t3 t4"}\n')
    tree = allowed_of_file(TOKENIZER, str(plain))
    assert tree == allowed_of_file(TOKENIZER, str(lines), "title")
    assert (tree.count, tree.longest) == (2, 4) and tree.holds([3, 4, EOS]) and not tree.holds([3, 5, EOS])
    config = train_config(rollout={"allowed": str(lines), "allowed_column": "title"})
    assert decode_settings(config, TOKENIZER).allowed == tree


def test_every_end_token_ends_them(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("t3\n")
    try:
        set_end_tokens(TOKENIZER, [EOS, 9])
        tree = allowed_of_file(TOKENIZER, str(tmp_path / "items.txt"))
    finally:
        set_end_tokens(TOKENIZER, [EOS])
    assert tree.count == 2 and tree.holds([3, EOS]) and tree.holds([3, 9])


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("", None, r"items: holds no completion"),
        ("t3\nt3 nonsense\n", None, r"items:2: 't3 nonsense': the policy's vocabulary has no token"),
        ("t3 ⁇\n", None, r"items:1: holds a token that ends a completion"),
        ('{"a": "t3"}\nt4\n', "a", r"items:2: is no JSON"),
        ('{"a": "t3"}\n{"b": "t3"}\n', "a", r"items:2: has no text in the column 'a'"),
        ("t3 t4 t5 t6 t7 t8 t9 t10\n", None, r"max_new_tokens=8: the longest completion allowed has 9 tokens"),
    ],
)
def test_what_cannot_be_is_told_with_its_line(tmp_path: Path, text: str, column: str | None, said: str) -> None:
    (tmp_path / "items").write_text(text)
    config = train_config(rollout={"allowed": str(tmp_path / "items"), "allowed_column": column})
    with pytest.raises(UserError, match=said):
        decode_settings(config, TOKENIZER)


def test_a_column_without_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="allowed_column=title is of the file allowed"):
        train_config(rollout={"allowed_column": "title"})


@pytest.mark.parametrize("instead", ["pipe", "device", "folder", "nothing"])
def test_what_stands_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path, instead: str) -> None:
    path = tmp_path / "items"
    if instead == "pipe":
        os.mkfifo(path)
    elif instead == "device":
        path.symlink_to("/dev/zero")
    elif instead == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=rf"^rollout\.allowed={path}: (cannot be read: Is a|no such file)"):
        allowed_of_file(TOKENIZER, str(path))


def test_a_line_that_nests_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"items\.jsonl:1: is no JSON"):
        allowed_of_file(TOKENIZER, str(tmp_path / "items.jsonl"), "title")
