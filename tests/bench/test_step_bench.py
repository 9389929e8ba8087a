"""The parts of ``bgrpo bench step`` on tiny cases, and its tables and picture from made-up rows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bgrpo.bench.step import packed_against_padded as sharing
from bgrpo.bench.step import trainer_against_bare as learner
from bgrpo.bench.step.step_tables import draw_step, step_tables
from bgrpo.bench.step.update_floor import count_products
from bgrpo.bench.step.update_workload import TINY, build_workload, endless_policy, without_sharing
from bgrpo.bench.turns import DisagreementError
from bgrpo.decoding import DecodeEngine, DecodeSettings
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
    row = learner.compare_learners(TINY, steps=2)
    assert row["weights_differ"] < learner.TOLERANCE
    assert row["steps"] == 2


def test_a_bare_loop_that_does_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "learning_rate_factor", lambda *_: 0.5)
    with pytest.raises(DisagreementError, match="the trainer's weights differ from the bare loop's"):
        learner.compare_learners(TINY, steps=1)


def test_packed_and_padded_updates_are_compared_at_the_same_gradient() -> None:
    beams, independent = sharing.compare_updates(TINY, padded_groups=1, rounds=1)
    assert beams["completions"] == "beams" and beams["gradient_error"] < sharing.TOLERANCE
    assert beams["padded_tokens"] == independent["padded_tokens"] == 2 * 4 * (12 + 6)
    assert beams["tokens"] <= independent["tokens"]


def test_another_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_logps = sharing.packed_logps
    monkeypatch.setattr(sharing, "packed_logps", lambda *args: (packed_logps(*args)[0] * 1.001, None))
    with pytest.raises(DisagreementError, match="the packed gradient differs from that of padded rows"):
        sharing.compare_updates(TINY, padded_groups=1, rounds=1)


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


def test_the_floor_counts_every_matrix_with_the_rows_it_gets() -> None:
    workload = build_workload(TINY)
    batches = [
        pack_groups([(group.prompt_ids, [c.tokens for c in group.completions])], "cpu") for group in workload.groups
    ]
    expected: dict[tuple[int, int, int], int] = {}
    for packed in batches:
        rows, scored = packed.input_ids_1T.shape[1], len(packed.scored_S)
        for inputs, outputs in ((32, 96), (32, 32), (32, 128), (128, 32)):
            expected[rows, inputs, outputs] = expected.get((rows, inputs, outputs), 0) + 2
        expected[scored, 32, len(workload.tokenizer)] = expected.get((scored, 32, len(workload.tokenizer)), 0) + 1
    assert count_products(workload.model, batches) == expected


def test_tables_and_picture() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in step_tables(ROWS):
        console.print(table)
    text = console.export_text()
    for figure in ("20.0×", "1.05×", "1.06×", "0.40%", "2.0×", "0.280"):
        assert figure in text, figure
    assert "…" not in text, "a table is too wide"
    runs, updates = draw_step({"rows": ROWS}).axes
    shares = [round(bar.get_width(), 3) for bar in runs.patches]
    assert shares == [0.392, 0.392, 0.02, 0.02, 0.549, 0.549, 0.039, 0.039]
    assert [bar.get_width() for bar in updates.patches] == [20.0]
    assert "not measured: --part run" in [text.get_text() for text in draw_step({"rows": ROWS[3:]}).axes[0].texts]
