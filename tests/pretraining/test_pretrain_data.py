"""Supervised lines as arrays, and their stateless order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.errors import UserError
from bgrpo.pretraining.supervised_lines import IGNORED, BatchOrder, Lines, collate, tokenise
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(0, 0)
PROBLEMS = [Problem("P 1 2 ⁇", "a"), Problem("a ⁇", "+ P 3 b"), Problem("* a b ⁇", "P 4")]


def test_lines_hold_prompt_answer_and_end_token() -> None:
    lines = tokenise(PROBLEMS, TOKENIZER)
    assert len(lines) == 3
    for i, problem in enumerate(PROBLEMS):
        ids = lines.tokens[lines.starts[i] : lines.starts[i + 1]]
        assert " ".join(TOKENIZER.convert_ids_to_tokens(ids.tolist())) == f"{problem.prompt} {problem.answer} ⁇"
    assert lines.lengths.tolist() == [6, 7, 7]
    assert lines.answer_lengths.tolist() == [2, 5, 3]


def test_collated_targets_are_the_answer_and_end_token_alone() -> None:
    batch = collate(tokenise(PROBLEMS, TOKENIZER), np.array([2, 0]), filler=1)
    rows = [" ".join(TOKENIZER.convert_ids_to_tokens(row)) for row in batch["input_ids"].tolist()]
    assert rows == ["* a b ⁇ P 4 ⁇", "P 1 2 ⁇ a ⁇ ⁇"]
    kept = [
        [TOKENIZER.convert_ids_to_tokens(t) if t != IGNORED else "." for t in row] for row in batch["targets"].tolist()
    ]
    assert [" ".join(row) for row in kept] == [". . . . P 4 ⁇", ". . . . a ⁇ ."]


def test_saved_lines_are_read_back(tmp_path: Path) -> None:
    lines = tokenise(PROBLEMS, TOKENIZER)
    lines.save(tmp_path / "train.npz")
    loaded = Lines.load(tmp_path / "train.npz")
    assert np.array_equal(loaded.tokens, lines.tokens)
    assert np.array_equal(loaded.starts, lines.starts)
    assert np.array_equal(loaded.prompt_lengths, lines.prompt_lengths)
    assert [path.name for path in tmp_path.iterdir()] == ["train.npz"]


def test_bad_lines_are_refused() -> None:
    with pytest.raises(UserError, match="no answer"):
        tokenise([Problem("a ⁇")], TOKENIZER)
    with pytest.raises(UserError, match=r"^a\.txt:7: its answer .*no token 'q'"):
        tokenise([Problem("a ⁇", "a"), Problem("a ⁇", "q", line=7)], TOKENIZER, "a.txt")


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_each_line_once(count: int, batch_size: int, seed: int, data: st.DataObject) -> None:
    if count < batch_size:
        with pytest.raises(UserError, match="do not fill"):
            BatchOrder(count, batch_size, seed)
        return
    order = BatchOrder(count, batch_size, seed)
    batches = [order.batch(step) for step in range(3 * count // batch_size + 1)]
    assert all(len(batch) == batch_size for batch in batches)
    visited = np.concatenate(batches).tolist()
    for epoch in range(3):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))
    step = data.draw(st.integers(0, len(batches) - 1))
    assert np.array_equal(BatchOrder(count, batch_size, seed).batch(step), batches[step])


def test_order_changes_with_seed_and_epoch() -> None:
    order = BatchOrder(6400, 64, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(100))
    assert not np.array_equal(order.batch(0), BatchOrder(6400, 64, seed=1).batch(0))
