"""Rows, conclusions, tables and the picture of ``bgrpo bench scaling`` from made-up measurements."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bgrpo.bench.scaling.measured_costs import Measured
from bgrpo.bench.scaling.scaling_bench import scaling_result
from bgrpo.bench.scaling.simulation import (
    ACTORS,
    POLICIES,
    REQUESTS,
    Costs,
    Curves,
    draw_scaling,
    ending,
    scaling_table,
    simulate_curves,
)

COSTS = Costs(
    request_s=tuple(0.04 + 0.002 * i for i in range(20)), service_s=0.005, verify_s=0.004, answer_s=0.0005,
    learn_s=0.03, publish_s=0.01, load_s=0.001, weight_bytes=2.5e6,
)  # fmt: skip
LARGE = replace(COSTS, request_s=tuple(20 * value for value in COSTS.request_s), learn_s=0.6, weight_bytes=76.8e6)
MEASURED = Measured(COSTS, 80, 12, {1: 1300.0, 2: 2100.0}, LARGE, [0.1, 0.2, 0.3])


@pytest.fixture(scope="module")
def curves() -> Curves:
    return simulate_curves({"shipped": COSTS, "19M": LARGE}, 80)


def test_curves_cover_both_shapes_and_bounds_up_to_32_nodes(curves: Curves) -> None:
    assert set(curves) == {(policy, shape, bound) for policy in POLICIES for shape in REQUESTS for bound in (0, 1)}
    for (policy, shape, staleness), curve in curves.items():
        assert [(row["policy"], row["shape"], row["staleness"], row["actors"]) for row in curve] == [
            (policy, shape, staleness, actors) for actors in ACTORS
        ]
        assert [row["nodes"] for row in curve] == [1, 1, 1, 1, 2, 4, 8, 16, 32]
        assert [row["requests"] for row in curve] == [256 if shape == "fixed" else 4 * actors for actors in ACTORS]
        for row in curve:
            assert row["rollouts_per_s"] == pytest.approx(row["requests"] * 80 / row["step_s"])
            per_actor = row["rollouts_per_s"] / row["actors"]
            assert row["efficiency"] == pytest.approx(per_actor / curve[0]["rollouts_per_s"])
            assert row["learners"] <= row["requests"] and 0 < row["actors_busy"] <= 1
    for policy in POLICIES:
        for shape in REQUESTS:
            for fresh, ahead in zip(curves[policy, shape, 0], curves[policy, shape, 1], strict=True):
                assert ahead["step_s"] <= fresh["step_s"] + 1e-9
    assert curves["19M", "growing", 1][6]["efficiency"] > curves["shipped", "growing", 1][6]["efficiency"]


def test_where_scaling_stops(curves: Curves) -> None:
    row = {"bottleneck": "weights", "bottleneck_share": 0.3}
    some = [row | {"actors": actors, "efficiency": value} for actors, value in ((1, 1.0), (4, 0.5), (8, 0.49))]
    assert ending(some) == (8, "below 50% efficiency from 8 actors on; the bottleneck: weights (30% of a step)")
    assert ending(some[:2]) == (None, "still 50% efficient with 4 actors; next: weights (30% of a step)")
    for shape in REQUESTS:
        assert "the bottleneck: service" in ending(curves["shipped", shape, 0])[1]


def test_the_simulation_of_what_was_measured_has_no_learning() -> None:
    simulated = MEASURED.simulated_rates()
    mean_s = sum(COSTS.request_s) / len(COSTS.request_s)
    assert simulated[1] == pytest.approx(80 / (mean_s + COSTS.service_s), rel=0.1)
    assert 1.7 < simulated[2] / simulated[1] < 2


def test_everything_fits_into_json_a_terminal_and_a_picture(curves: Curves) -> None:
    result = json.loads(json.dumps(scaling_result(MEASURED, curves, {"cpu": "test"})))
    assert len(result["rows"]) == 8 * len(ACTORS)
    assert result["rows"][0].keys() >= {"actors", "staleness", "rollouts_per_s", "efficiency", "bottleneck"}
    assert result["efficiency_below_half_at"]["shipped, fixed, staleness 0"] == ending(curves["shipped", "fixed", 0])[0]
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in (*MEASURED.tables(), scaling_table(curves, "19M", "fixed")):
        console.print(table)
    shown = console.export_text()
    assert "256" in shown and "…" not in shown
    assert "0.20" in shown and "0.30" in shown and "59.0" in shown
    lines = draw_scaling(curves, MEASURED.rollouts_per_s).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [list(ACTORS)] * 5 + [[1, 2]]
    assert list(lines[-1].get_ydata()) == [1300.0, 2100.0]
