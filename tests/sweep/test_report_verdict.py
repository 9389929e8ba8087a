"""The verdict over many made-up sweeps: right about a planted effect, silent about none, honest about the rest."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.sweep.report.sweep_verdict import Circumstances, Conclusion, compare_arms, decide, unequal_amounts

LEVEL = 0.05


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """statsmodels collects garbage at each adjustment: what other tests left is not looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


Results = dict[str, dict[int, list[float]]]


def _results(
    gains: dict[str, float], seeds: int, problems: int, seed_noise: float, generator: np.random.Generator
) -> Results:
    """Solved or not, per problem, by policies whose ability is the arm's gain plus a seed's luck."""
    difficulty_N = generator.normal(0, 2, problems)
    return {
        arm: {
            seed: (
                difficulty_N + gain + generator.normal(0, seed_noise) + generator.normal(0, 0.3, problems) > 0
            ).astype(float).tolist()
            for seed in range(seeds)
        }
        for arm, gain in gains.items()
    }  # fmt: skip


def _claims(gains: dict[str, float], seeds: int, problems: int, seed_noise: float, sweeps: int) -> dict[str, float]:
    """Share of sweeps in which each arm is named the winner, and ``any`` with any claim at all."""
    generator = np.random.default_rng(seeds * 1000 + problems)
    counts = dict.fromkeys([*gains, "any"], 0)
    for _ in range(sweeps):
        verdict = decide(_results(gains, seeds, problems, seed_noise, generator), "base", "greedy", Circumstances())
        if verdict.winner is not None:
            counts[verdict.winner] += 1
        counts["any"] += any(c.conclusion in (Conclusion.BETTER, Conclusion.WORSE) for c in verdict.comparisons)
    return {name: count / sweeps for name, count in counts.items()}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("problems", "seed_noise"), [(20, 0.0), (200, 0.02), (200, 0.5)], ids=["coarse", "problems", "seeds"]
)
def test_without_an_effect_a_claim_is_no_commoner_than_the_level(seeds: int, problems: int, seed_noise: float) -> None:
    sweeps = 600
    found = _claims({"base": 0.0, "other": 0.0}, seeds, problems, seed_noise, sweeps)
    assert found["any"] <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / sweeps)


def test_one_more_solved_problem_in_every_seed_is_no_difference() -> None:
    other = {seed: [1.0] + [0.0] * 49 for seed in range(4)}
    (comparison,) = compare_arms({"base": {seed: [0.0] * 50 for seed in range(4)}, "other": other}, "base")
    assert comparison.effect is not None
    assert comparison.effect.p_seeds == 0.0
    assert comparison.conclusion == Conclusion.NO_DIFFERENCE
    verdict = decide({"base": dict.fromkeys(range(4), [0.0] * 50), "other": other}, "base", "greedy", Circumstances())
    assert "+2.0 points [-2.0, +6.0] (95 % t interval over problems, 4 seeds" in verdict.sentences[0]


def test_with_many_arms_and_no_effect_any_claim_is_no_commoner_than_the_level() -> None:
    sweeps = 150
    found = _claims(dict.fromkeys(["base", "a", "b", "c", "d"], 0.0), 4, 100, 0.3, sweeps)
    assert found["any"] <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / sweeps)


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_planted_effect_is_found_and_its_arm_named(seeds: int) -> None:
    found = _claims({"base": 0.0, "none": 0.0, "planted": 0.7}, seeds, 300, 0.05, 60)
    assert found["planted"] >= 0.9
    assert found["none"] + found["base"] <= 0.1


@pytest.mark.parametrize(
    ("values", "metric", "told"),
    [
        ([1.0] * 50, "greedy", "highest"),
        ([0.0] * 50, "beam_rank_score", "lowest"),
        ([1.0] * 45 + [0.0] * 5, "greedy", None),
        ([1.0] * 50, "greedy_reward", None),  # may be anything
    ],
)
def test_a_metric_without_room_for_a_difference_is_told(values: list[float], metric: str, told: str | None) -> None:
    results = {arm: dict.fromkeys(range(4), values) for arm in ("base", "other")}
    cautions = [line for line in decide(results, "base", metric, Circumstances()).lines() if "cannot tell" in line]
    assert len(cautions) == (told is not None)
    assert told is None or f"its {told} value" in cautions[0]
    assert not [
        line for line in decide({"base": results["base"]}, "base", metric, Circumstances()).lines() if "room" in line
    ]


def test_a_better_baseline_is_named() -> None:
    results = _results({"base": 1.0, "other": 0.0}, 4, 300, 0.02, np.random.default_rng(0))
    verdict = decide(results, "base", "greedy", Circumstances())
    assert verdict.winner == "base"
    assert verdict.headline == "base beats other in greedy."
    assert [c.conclusion for c in verdict.comparisons] == [Conclusion.WORSE]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.floats(-3, 3), st.integers(0, 100))
def test_fewer_than_three_seeds_never_make_a_winner(seeds: int, gain: float, number: int) -> None:
    results = _results({"base": 0.0, "other": gain}, 5, 50, 0.0, np.random.default_rng(number))
    results["other"] = {seed: results["other"][seed] for seed in range(seeds)}
    verdict = decide(results, "base", "greedy", Circumstances())
    assert verdict.winner is None
    assert verdict.headline == f"Too few seeds to judge: {seeds} in common, at least 3 are needed for any claim."


def test_arms_are_paired_by_the_seeds_that_both_have() -> None:
    base = {1: [0.0, 1.0], 2: [1.0, 1.0], 3: [0.0, 0.0], 4: [1.0, 0.0]}
    other = {2: [1.0, 0.0], 4: [1.0, 1.0], 7: [1.0, 1.0]}
    (comparison,) = compare_arms({"base": base, "other": other}, "base")
    assert comparison.seeds == [2, 4]
    assert comparison.effect is not None
    assert comparison.effect.by_seed == [-0.5, 0.5]


def test_the_verdict_tells_seeds_budget_metric_and_interval() -> None:
    results = _results({"base": 0.0, "better": 2.0}, 3, 200, 0.01, np.random.default_rng(1))
    verdict = decide(results, "base", "greedy", Circumstances(budget="100 steps"))
    text = " ".join([verdict.headline, *verdict.sentences])
    for expected in (
        "better beats base in greedy",
        "200 test problems",
        "better 3 (0, 1 and 2)",
        "100 steps",
        "points [",
    ):
        assert expected in text
    assert any("fewer than 6 seeds" in caution for caution in verdict.cautions)


def test_cautions_name_unequal_budgets_failures_and_what_is_still_to_come() -> None:
    results = _results({"base": 0.0, "other": 0.0}, 3, 50, 0.1, np.random.default_rng(2))
    circumstances = Circumstances(
        used={"base": {"tokens": 1000.0, "steps": 100.0}, "other": {"tokens": 1060.0, "steps": 104.0}},
        failed={"other": 2},
        unfinished={"base": 1, "other": 0},
    )
    cautions = decide(results, "base", "greedy", circumstances).cautions
    assert "Budgets differ: other used 6 % more decoded tokens than base." in cautions
    assert not any("training steps" in caution for caution in cautions)
    assert any("Confirm trials of other that failed: 2;" in caution for caution in cautions)
    assert any(caution.endswith("without a result yet: base 1.") for caution in cautions)


def test_an_amount_that_one_arm_did_not_count_is_not_compared() -> None:
    assert unequal_amounts({"a": {"tokens": 0.0}, "b": {"tokens": 10.0}, "c": {"tokens": 10.4}}) == {}
    assert unequal_amounts({"a": {"tokens": 8.0}, "b": {"tokens": 10.0}}) == {"tokens": ("a", "b", 0.25)}
