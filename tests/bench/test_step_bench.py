from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bgrpo.bench.step import learner, parent, sharing
from bgrpo.bench.step.floor import update_floor
from bgrpo.bench.step.report import plot_step, step_tables
from bgrpo.bench.step.workload import TINY, build_workload, endless_policy, without_sharing
from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.errors import UserError
from bgrpo.learning.packing import pack_groups
from bgrpo.policies.io import load_policy

RUN = {
    "part": "run",
    "run": "quickstart",
    "rollout": 0.2,
    "weights": 0.01,
    "learn": 0.3,
    "optimizer": 0.02,
    "total": 0.51,
}
ROWS: list[dict[str, Any]] = [
    RUN | {"learners": 1, "steps": 3},
    RUN | {"learners": 2, "steps": 3},
    {
        "part": "overlap", "run": "quickstart", "rollout_s": 0.2, "learn_s": 0.3, "total_s": 0.51,
        "learn_ahead_s": 0.32, "total_ahead_s": 0.35, "bound_s": 0.33, "ratio": 1.06,
    },
    {"part": "learner", "case": "19M", "learner_s": 2.0, "bare_s": 1.9, "ratio": 1.05, "floor_s": 1.0},
    {
        "part": "sharing", "case": "19M", "completions": "beams", "packed_s": 1.5, "padded_s": 30.0, "ratio": 20.0,
        "padded_onednn_s": 15.0, "same_products_ratio": 10.0, "tokens": 1728, "padded_tokens": 26000,
    },
    {"part": "verification", "run": "quickstart", "actors": 2, "checked_s": 0.21, "unchecked_s": 0.2, "ratio": 1.05},
    {"part": "tracking", "run": "quickstart", "seconds_per_step": 0.002, "share": 0.004},
]  # fmt: skip


def test_the_trainer_and_the_bare_loop_end_with_the_same_weights() -> None:
    row = learner.measure_learner(TINY, steps=2)
    assert row["weights_differ"] < learner.TOLERANCE
    assert row["learner_s"] > 0 and row["bare_s"] > 0 and row["floor_s"] > 0


def test_a_bare_loop_that_does_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "learning_rate_factor", lambda *_: 0.5)
    with pytest.raises(RuntimeError, match="the trainer's weights differ from the bare loop's"):
        learner.measure_learner(TINY, steps=1)


def test_packed_and_padded_updates_are_compared_at_the_same_gradient() -> None:
    beams, independent = sharing.measure_sharing(TINY, padded_groups=1, rounds=1)
    assert beams["completions"] == "beams" and beams["gradient_error"] < sharing.TOLERANCE
    assert beams["padded_tokens"] == independent["padded_tokens"] == 2 * 4 * (12 + 6)
    assert beams["tokens"] <= independent["tokens"]


def test_another_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_logps = sharing.packed_logps
    monkeypatch.setattr(sharing, "packed_logps", lambda *args: (packed_logps(*args)[0] * 1.001, None))
    with pytest.raises(RuntimeError, match="the packed gradient differs from that of padded rows"):
        sharing.measure_sharing(TINY, padded_groups=1, rounds=1)


def test_the_policy_with_random_weights_never_ends_a_completion() -> None:
    assert TINY.shape is not None
    tokenizer = load_policy("shipped").tokenizer
    settings = DecodeSettings("beam", 8, 20, tokenizer.eos_token_id, tokenizer.pad_token_id)
    (group,) = DecodeEngine(endless_policy(TINY.shape, tokenizer)).decode([[3, 4, 5]], settings)
    assert [len(completion.tokens) for completion in group.completions] == [20] * 8


def test_completions_that_share_nothing_keep_their_lengths() -> None:
    groups = build_workload(TINY).groups
    for old, new in zip(groups, without_sharing(groups, 49), strict=True):
        assert [len(one.tokens) for one in old.completions] == [len(one.tokens) for one in new.completions]
        assert len({tuple(one.tokens) for one in new.completions}) == len(new.completions)


def test_the_floor_grows_with_the_tokens() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)])
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    small, large = (pack_groups([(list(range(size)), [[1, 2]])], "cpu") for size in (64, 1024))
    assert 0 < update_floor(model, [small]) < update_floor(model, [large])  # type: ignore[arg-type]


def test_all_parts_are_measured_unless_some_are_named() -> None:
    assert parent.check_parts([]) == list(parent.TURNS)
    assert parent.check_parts(["run", "learner"]) == ["learner", "run"]
    with pytest.raises(UserError, match="--part learners: expected one of learner, sharing, run"):
        parent.check_parts(["learners"])


def test_a_measuring_process_answers_in_rows() -> None:
    turns: list[int] = []
    lines = list(parent.measure(["learner"], lambda: turns.append(1), size="tiny"))
    assert lines[0]["machine"]["threads"] == 1 and len(turns) == 1
    assert lines[1]["row"]["part"] == "learner" and json.dumps(lines)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "CHILD", "bgrpo.bench.step.absent")
    with pytest.raises(RuntimeError, match="measures learner ended with status 1"):
        list(parent.measure(["learner"], lambda: None))


def test_tables_and_picture(tmp_path: Path) -> None:
    console = Console(width=100, record=True, quiet=False, file=(tmp_path / "out.txt").open("w"))
    for table in step_tables(ROWS):
        console.print(table)
    text = console.export_text()
    assert "20.0×" in text and "1.05×" in text and "1.06×" in text and "0.40%" in text and "2.0×" in text
    assert "…" not in text, "a table is too wide"
    plot_step(ROWS, tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
