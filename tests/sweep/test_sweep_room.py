"""How many trials have room: never more than could be placed, checked against trying every placement."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bgrpo.sweep.cluster_room import arithmetic, fits, most_at_a_time

SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
BUNDLES = st.fixed_dictionaries({"CPU": SHARES, "GPU": st.sampled_from([0.0, 0.5, 1.0])})
NODES = st.lists(st.fixed_dictionaries({"CPU": SHARES, "GPU": st.sampled_from([0.0, 1.0])}), min_size=1, max_size=3)


def can_be_placed(nodes: list[dict[str, float]], bundles: list[dict[str, float]]) -> bool:
    """Brute force over all placements."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        if all(
            sum(bundle[unit] for bundle, place in zip(bundles, places, strict=True) if place == i) <= node[unit]
            for i, node in enumerate(nodes)
            for unit in ("CPU", "GPU")
        ):
            return True
    return False


@given(NODES, st.lists(BUNDLES, max_size=5))
def test_yes_is_always_right_and_no_is_right_on_one_node(
    nodes: list[dict[str, float]], bundles: list[dict[str, float]]
) -> None:
    answer = fits(nodes, [bundles])
    if answer or len(nodes) == 1:
        assert answer == can_be_placed(nodes, bundles)


@given(NODES, st.lists(BUNDLES, min_size=1, max_size=3), st.integers(0, 5))
def test_the_most_is_the_last_that_fits(
    nodes: list[dict[str, float]], trial: list[dict[str, float]], limit: int
) -> None:
    most = most_at_a_time(nodes, trial, limit)
    assert 0 <= most <= limit and fits(nodes, [trial] * most)
    assert most == limit or not fits(nodes, [trial] * (most + 1))


def test_fractions_of_gpus_add_up() -> None:
    trial = [{"CPU": 1.0, "GPU": 0.1}] * 2 + [{"CPU": 0.5, "GPU": 0.05}] * 2  # 0.3 of a GPU
    assert most_at_a_time([{"CPU": 16.0, "GPU": 1.0}], trial, 100) == 3


def test_the_sum_is_shown() -> None:
    demands = [("learner.workers", 1, {"CPU": 0.5, "GPU": 0.0}), ("rollout.actors", 2, {"CPU": 0.5, "GPU": 0.0})]
    assert arithmetic(demands, [{"CPU": 2.0}], 1) == (
        "a trial needs learner.workers 1 × 0.5 + rollout.actors 2 × 0.5 = 1.5 CPU, the cluster has 2: 1 at a time"
    )
