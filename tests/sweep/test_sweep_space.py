"""Points: the same number for every arm, inside their space, the same whenever they are drawn."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_configs import sweep_config

from bgrpo.errors import UserError
from bgrpo.sweep.search_space import Tried, known_points, next_point, number_of_points
from bgrpo.sweep.sweep_config import SpaceEntry, SweepConfig

KEYS = ["learner.learning_rate", "learner.beta", "rollout.group_size"]
NUMBERS = st.floats(1e-6, 10).map(lambda value: float(f"{value:.3g}"))
RANGES = st.tuples(NUMBERS, NUMBERS, st.booleans()).filter(lambda entry: entry[0] < entry[1])
ENTRIES = st.one_of(
    st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True).map(lambda values: {"values": values}),
    RANGES.map(lambda entry: {"min": entry[0], "max": entry[1], "log": entry[2]}),
    st.tuples(st.integers(1, 20), st.integers(21, 40)).map(lambda entry: {"min": entry[0], "max": entry[1]}),
)
SPACES = st.dictionaries(st.sampled_from(KEYS), ENTRIES, min_size=1)


def is_inside(entry: SpaceEntry, value: Any) -> bool:
    if entry.values is not None:
        return value in entry.values
    return entry.low <= value <= entry.high and (isinstance(value, int) or not entry.is_integer)


@settings(deadline=None)
@given(SPACES, st.integers(1, 12), st.integers(0, 9))
def test_random_points_are_inside_and_the_same_for_every_arm(space: dict[str, Any], count: int, seed: int) -> None:
    sweep = sweep_config(space=space, searcher="random", trials_per_arm=count, seed=seed)
    points = known_points(sweep, "bgrpo")
    assert len(points) == count == number_of_points(sweep)
    assert points == known_points(sweep, "grpo")
    assert all(is_inside(sweep.space[key], value) for point in points for key, value in point.items())
    assert all(point.keys() == space.keys() for point in points)
    assert (
        known_points(sweep_config(space=space, searcher="random", trials_per_arm=count + 3, seed=seed), "bgrpo")[:count]
        == points
    )  # more trials add points, and change none


def test_a_logarithmic_range_is_uniform_in_the_logarithm() -> None:
    space = {"learner.learning_rate": {"min": 1e-5, "max": 2e-4, "log": True}}
    points = known_points(sweep_config(space=space, searcher="random", trials_per_arm=600), "bgrpo")
    logs = sorted(math.log(point["learner.learning_rate"] / 1e-5) / math.log(20) for point in points)
    furthest = max(abs(value - (i + 0.5) / 600) for i, value in enumerate(logs))  # Kolmogorov-Smirnov
    assert furthest < 1.63 / math.sqrt(600)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_a_grid_holds_every_combination_once(sizes: list[int]) -> None:
    space = {key: {"values": list(range(size))} for key, size in zip(KEYS, sizes, strict=False)}
    points = known_points(sweep_config(space=space), "grpo")
    expected = set(itertools.product(*(range(size) for size in sizes)))
    assert {tuple(point.values()) for point in points} == expected and len(points) == len(expected)


def test_arms_get_the_same_number_of_trials() -> None:
    arms = {"a": {"space": {"learner.beta": {"values": [0.1, 0.2, 0.3]}}}, "b": {}}
    with pytest.raises(UserError, match=r"different sizes \(a 6, b 2\).* give trials_per_arm=2"):
        number_of_points(sweep_with(arms))
    cut = sweep_with(arms, trials_per_arm=2)
    assert [len(known_points(cut, arm)) for arm in ("a", "b")] == [2, 2]
    with pytest.raises(UserError, match="more than an arm's grid has"):
        number_of_points(sweep_with(arms, trials_per_arm=3))
    with pytest.raises(UserError, match="is a range; give values"):
        number_of_points(sweep_config(space={"learner.beta": {"min": 0.1, "max": 0.2}}))
    with pytest.raises(UserError, match="needs trials_per_arm"):
        number_of_points(sweep_config(searcher="random"))


def sweep_with(arms: dict[str, Any], **fields: Any) -> SweepConfig:
    tree = {"space": {"learner.learning_rate": {"values": [1e-5, 1e-4]}}, "searcher": "grid"}
    return SweepConfig.model_validate(tree | {"arms": arms} | fields)


def test_optuna_finds_the_best_point_and_goes_on_where_it_was() -> None:
    pytest.importorskip("optuna")
    space = {
        "learner.beta": {"min": 0.0, "max": 1.0},
        "rollout.group_size": {"min": 2, "max": 30},
        "reward.kind": {"values": ["simple", "rank"]},
    }
    sweep = sweep_config(space=space, searcher="optuna", trials_per_arm=40)

    def quality(point: dict[str, Any]) -> float:
        return -((point["learner.beta"] - 0.7) ** 2) + 0.1 * (point["reward.kind"] == "rank")

    tried: list[Tried] = []
    for index in range(40):
        if index == 3:  # its trial failed
            tried[-1] = tried[-1]._replace(value=None)
        if index == 20:
            assert next_point(sweep, "bgrpo", tried) == next_point(sweep, "bgrpo", list(tried)), "nothing else counts"
        point = next_point(sweep, "bgrpo", tried)
        tried.append(Tried(point | {"algorithm": "bgrpo"}, True, quality(point)))
    points = [{key: point[key] for key in space} for point, _, _ in tried]
    assert all(is_inside(sweep.space[key], value) for point in points for key, value in point.items())
    assert len({str(point) for point in points}) > 35
    late = [quality(point) for point in points[28:]]
    early = [quality(point) for point in points[:10]]
    assert sum(late) / len(late) > sum(early) / len(early)
    assert max(map(quality, points)) > 0.09


def test_optuna_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'bgrpo\[sweep\]'"):
        number_of_points(sweep_config(searcher="optuna", trials_per_arm=2))


def test_optuna_keeps_away_from_points_that_still_run() -> None:
    pytest.importorskip("optuna")
    sweep = sweep_config(space={"learner.beta": {"min": 0.0, "max": 1.0}}, searcher="optuna", trials_per_arm=20)
    tried = [Tried({"learner.beta": i / 12}, True, -abs(i / 12 - 0.5)) for i in range(12)]
    running = [Tried({"learner.beta": 0.5}, False) for _ in range(6)]
    near = abs(next_point(sweep, "bgrpo", tried)["learner.beta"] - 0.5)
    assert abs(next_point(sweep, "bgrpo", [*tried, *running])["learner.beta"] - 0.5) > near


def test_a_grid_that_no_sweep_could_try_is_refused_before_it_is_made() -> None:
    values = {"values": [float(i) for i in range(1, 1001)]}
    space = dict.fromkeys(("learner.beta", "learner.epsilon", "learner.max_kl"), values)
    with pytest.raises(UserError, match="the grid has 1000000000 points, at most 100000"):
        known_points(sweep_config(space=space, searcher="grid", trials_per_arm=2), "bgrpo")
