"""What a run has spent, and when its budget is used up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import TrainConfig, build_config
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.runs.budget import Spent, expected_steps, is_spent, progress

SPENT = st.builds(
    Spent, st.integers(0, 99), st.integers(0, 99), st.integers(0, 9999), st.integers(0, 99999), st.floats(0, 1e5)
)


def config(steps: int = 10, **budget: float) -> TrainConfig:
    return build_config(TrainConfig, {"steps": steps, "budget": budget}, "test")


def group(*lengths: int) -> ScoredGroup:
    completions = [Completion([1] * length, [0.0] * length, True) for length in lengths]
    return ScoredGroup(prompt_ids=[1], completions=completions, rewards=[0.0] * len(lengths), index=0, version=0)


@given(SPENT)
def test_what_was_spent_survives_the_metrics(spent: Spent) -> None:
    metrics = spent.metrics()
    assert Spent.from_metrics(metrics | {"reward_mean": 0.5}) == spent
    assert set(metrics) == {f"used/{name}" for name in ("steps", "gradient_steps", "completions", "tokens", "seconds")}


def test_a_step_is_counted() -> None:
    spent = Spent(4, 8, 100, 1000, 5.0).with_rollouts([group(3, 2), group(5)]).with_update(2, 1.5)
    assert spent == Spent(5, 10, 103, 1010, 6.5)
    assert Spent.from_metrics({}) == Spent()


@pytest.mark.parametrize(
    ("budget", "fraction"),
    [
        ({}, 0.5),
        ({"completions": 80}, 0.5),
        ({"completions": 20}, 1.5),
        ({"tokens": 300}, 1.0),
        ({"seconds": 10.0}, 0.7),
        ({"seconds": 10.0, "tokens": 400}, 0.75),
    ],
)
def test_the_currency_that_is_furthest_decides(budget: dict[str, float], fraction: float) -> None:
    spent = Spent(steps=5, gradient_steps=10, completions=30, tokens=300, seconds=7.0)
    assert progress(config(**budget), spent) == pytest.approx(fraction)
    assert is_spent(config(**budget), spent) == (fraction >= 1)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 50))
def test_expected_steps_are_the_steps_that_a_steady_run_makes(steps: int, per_step: int, budget: int) -> None:
    """Simulated: a run whose steps all cost the same ends at the step that was expected, rounded up."""
    run, spent, made = config(steps, tokens=budget), Spent(), 0
    assert expected_steps(run, spent, 0) == steps
    while not is_spent(run, spent):
        spent = spent.with_rollouts([group(per_step)]).with_update(1, 0.1)
        made += 1
        expected = expected_steps(run, spent, made)
        assert expected == pytest.approx(min(steps, budget / per_step))
    assert made == min(steps, -(-budget // per_step))
