"""Reward hacking is reported where a watched part falls while the reward rises, and not where nothing changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import TrainConfig, build_config
from bgrpo.runs.audit import LEAST_STEPS, audit, change
from bgrpo.runs.learning_signal import conclusions

STEPS = 60
NUMBERS = st.none() | st.floats(-1e6, 1e6) | st.just(math.nan)


def config(*watched: str) -> TrainConfig:
    parts: dict[str, Any] = {"quality": {"metric": "bleu"}}
    parts |= {name: {"metric": "rouge_l", "weight": 0} for name in watched}
    return build_config(TrainConfig, {"reward": {"parts": parts}}, "test")


def steps(scores: Any, **parts: Any) -> list[dict[str, Any]]:
    columns = {"score_mean": scores, **{f"part/{name}/mean": values for name, values in parts.items()}}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row | {"groups_used": 4.0, "informative_groups": 1.0} for row in rows]


def noise(seed: int, count: int = STEPS) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, count)


def test_a_watched_part_that_falls_while_the_reward_rises_is_reported_with_its_numbers() -> None:
    run = steps(0.1 * np.arange(STEPS) + noise(0), overlap=5 - 0.1 * np.arange(STEPS) + noise(1), length=noise(2))
    (line,) = audit(config("overlap", "length").reward, run)
    assert line.startswith("warning: this may be reward hacking: overlap, which is only watched, fell from ")
    assert "while the reward rose from" in line and "first and the last 20 steps" in line
    assert line in conclusions(config("overlap", "length"), run), "at the end of the run, in its report and its page"
    assert audit(config().reward, run) == [], "what is learned from is not audited"


@pytest.mark.parametrize(("of_score", "of_part"), [(1, 1), (-1, -1), (-1, 1), (0, -1), (1, 0)])
def test_other_directions_are_no_hacking(of_score: int, of_part: int) -> None:
    drift = 0.1 * np.arange(STEPS)
    run = steps(of_score * drift + noise(0), overlap=of_part * drift + noise(1))
    assert audit(config("overlap").reward, run) == []


@pytest.mark.parametrize("kind", ["independent", "opposed", "heavy tails", "each step like the last"])
def test_of_runs_in_which_nothing_changes_at_least_95_of_100_are_not_reported(kind: str) -> None:
    """The worst case is a part that is the reward's opposite: both change together. At most 2 of 100 here."""
    draw, runs, false_alarms = np.random.default_rng(7), 300, 0
    for _ in range(runs):
        scores = draw.standard_t(3, STEPS) if kind == "heavy tails" else draw.normal(0, 1, STEPS)
        if kind == "each step like the last":
            for i in range(1, STEPS):
                scores[i] += 0.3 * scores[i - 1]
        parts = draw.normal(0, 1, STEPS) if kind == "independent" else -scores
        false_alarms += len(audit(config("overlap").reward, steps(scores, overlap=parts)))
    assert false_alarms <= 0.02 * runs


def test_most_falls_of_two_deviations_are_found() -> None:
    drift, runs = np.linspace(0, 3, STEPS), 50
    found = [
        audit(config("overlap").reward, steps(drift + noise(i), overlap=noise(1000 + i) - drift)) for i in range(runs)
    ]
    assert sum(map(bool, found)) > 0.9 * runs


def test_a_change_that_is_small_beside_the_noise_is_none_however_long_the_run() -> None:
    long = 30_000
    drift = np.linspace(0, 0.3, long)
    run = steps(drift + noise(0, long), overlap=noise(1, long) - drift)
    moved = change([row["part/overlap/mean"] for row in run])
    assert moved is not None and moved.p_value < 1e-6 and moved.effect < 0.5
    assert audit(config("overlap").reward, run) == []


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_whatever_the_steps_hold_there_is_an_answer(rows: list[tuple[float | None, float | None]]) -> None:
    run = steps([score for score, _ in rows], overlap=[part for _, part in rows])
    known = [all(value is not None and math.isfinite(value) for value in row) for row in rows]
    found = audit(config("overlap").reward, run)
    assert len(found) <= 1
    assert not found or sum(known) >= 3 * LEAST_STEPS


def test_values_that_never_vary_change_or_do_not() -> None:
    third = [0.25] * LEAST_STEPS
    assert change(third * 3) == (0.25, 0.25, 1.0, 0.0)
    assert change([*third, *third, *[0.5] * LEAST_STEPS]) == (0.25, 0.5, 0.0, math.inf)
    assert change([1.0] * (3 * LEAST_STEPS - 1)) is None
    assert audit(config("overlap").reward, steps([0.1] * 7 + [0.9] * 14, overlap=[0.9] * 7 + [0.1] * 14))
