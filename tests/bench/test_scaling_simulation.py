"""The simulation where its result is known without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.bench.scaling.simulation import Cluster, Costs, savings, simulate

SECOND = Costs(request_s=(1.0,))


@given(st.integers(1, 40), st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_without_overhead_the_step_is_the_work_divided_in_whole_requests(actors: int, requests: int) -> None:
    step_s, busy = simulate(SECOND, Cluster(actors, requests), steps=3)
    assert step_s == pytest.approx(math.ceil(requests / actors))
    assert busy == pytest.approx(requests / (actors * math.ceil(requests / actors)))


def test_one_request_gains_nothing_from_more_actors() -> None:
    costs = replace(SECOND, service_s=0.02, travel_s=0.03, verify_s=0.05, load_s=0.1, answer_s=0.01)
    times = [simulate(costs, Cluster(actors, 1))[0] for actors in (1, 2, 64)]
    assert times == pytest.approx([1.0 + 0.02 + 0.03 + 0.05 + 0.1 + 0.01] * 3)


def test_the_service_is_the_floor_of_many_actors() -> None:
    costs = Costs(request_s=(1.0,), service_s=0.1)
    step_s = simulate(costs, Cluster(actors=100, requests=100))[0]
    assert 100 * 0.1 - 1e-9 <= step_s <= 100 * 0.1 + 1.0


def test_a_verifier_is_hidden_behind_decoding_until_it_is_slower() -> None:
    hidden = replace(SECOND, verify_s=0.4)
    assert simulate(hidden, Cluster(2, 8))[0] == pytest.approx(4 + 2 * 0.4), "two replies come at once"
    slower = replace(SECOND, verify_s=0.6)
    assert simulate(slower, Cluster(2, 8))[0] == pytest.approx(1 + 8 * 0.6)
    assert simulate(slower, Cluster(2, 8, verifiers=2))[0] == pytest.approx(4 + 0.6)


def test_the_slowest_of_many_decides_a_step() -> None:
    costs = Costs(request_s=(1.0,) * 9 + (5.0,))
    assert simulate(costs, Cluster(actors=200, requests=200))[0] == pytest.approx(5.0)
    assert savings(costs, Cluster(200, 200))["stragglers"] == pytest.approx(1 - 1.4 / 5)


@given(st.floats(0.1, 20), st.floats(0, 0.5), st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_overlap_makes_the_longer_of_rollout_and_learning(learn_s: float, publish_s: float, actors: int) -> None:
    costs = replace(SECOND, learn_s=learn_s / 8, publish_s=publish_s)
    decode_s, update_s = math.ceil(8 / actors), learn_s + publish_s
    assert simulate(costs, Cluster(actors, 8))[0] == pytest.approx(decode_s + update_s)
    assert simulate(costs, Cluster(actors, 8, staleness=1))[0] == pytest.approx(max(decode_s, update_s))


def test_weights_travel_along_a_binary_tree() -> None:
    costs = Costs(request_s=(1.0,), weight_bytes=100.0, load_s=0.25)
    for nodes, hops in ((1, 0), (2, 1), (4, 2), (5, 3), (32, 5)):
        cluster = Cluster(actors=2 * nodes, requests=2 * nodes, nodes=nodes, bytes_per_s=2000.0)
        assert simulate(costs, cluster)[0] == pytest.approx(1.0 + 0.25 + hops * 0.05)


def test_learners_share_the_update_and_pay_for_the_gradients_and_for_their_groups() -> None:
    costs = Costs(request_s=(0.0,), learn_s=0.5, answer_s=0.01, fetch_s=0.02, weight_bytes=100.0)
    cluster = Cluster(actors=1, requests=12, learners=4, bytes_per_s=1000.0)
    share_s, ring_s, receipt_s = 3 * 0.5, 2 * 0.75 * 0.1, 12 * (4 * 0.01 + 0.02)
    assert simulate(costs, cluster)[0] == pytest.approx(share_s + ring_s + receipt_s)


def test_what_would_be_saved_names_the_bottleneck() -> None:
    slow = {
        "decoding": (SECOND, Cluster(4, 8)),
        "service: sending and receiving": (replace(SECOND, service_s=0.5), Cluster(64, 64)),
        "service: answering learners": (replace(SECOND, answer_s=0.5), Cluster(64, 64, learners=8)),
        "verification": (replace(SECOND, verify_s=2.0), Cluster(8, 64)),
        "weights": (replace(SECOND, publish_s=5.0), Cluster(64, 64)),
        "learning": (replace(SECOND, learn_s=1.0), Cluster(64, 64)),
    }
    for name, (costs, cluster) in slow.items():
        saved = savings(costs, cluster)
        assert max(saved, key=lambda thing: saved[thing]) == name
    uneven = savings(SECOND, Cluster(4, 5))
    assert uneven["requests that do not divide evenly"] == pytest.approx(1 - 1.25 / 2)
    assert uneven["stragglers"] == 0


def test_the_same_seed_gives_the_same_result() -> None:
    costs = Costs(request_s=tuple(0.1 * i for i in range(1, 20)))
    runs = [simulate(costs, Cluster(7, 40), seed=seed)[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
