"""Rows, conclusions and the picture of ``bgrpo bench scaling`` from made-up measurements."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bgrpo.bench.scaling import report as scaling
from bgrpo.bench.scaling.costs import Measured
from bgrpo.bench.scaling.model import Costs

COSTS = Costs(
    request_s=tuple(0.04 + 0.002 * i for i in range(20)), service_s=0.005, verify_s=0.004, answer_s=0.0005,
    learn_s=0.03, publish_s=0.01, load_s=0.001, weight_bytes=2.5e6,
)  # fmt: skip
MEASURED = Measured(
    costs=COSTS,
    completions_per_request=80,
    requests=12,
    rollouts_per_s={1: 1300.0, 2: 2100.0},
    large=replace(COSTS, request_s=tuple(20 * value for value in COSTS.request_s), learn_s=0.6, weight_bytes=76.8e6),
    large_publish_s=[0.1, 0.2, 0.3],
)


@pytest.fixture(scope="module")
def rows() -> list[scaling.Row]:
    policies = {"shipped": MEASURED.costs, "19M": MEASURED.large}
    return [row for name, costs in policies.items() for row in scaling.simulate_rows(name, costs, 80)]


def test_rows_cover_both_shapes_and_bounds_up_to_32_nodes(rows: list[scaling.Row]) -> None:
    assert len(rows) == 2 * 2 * 2 * len(scaling.ACTORS)
    assert {(row.actors, row.nodes) for row in rows} >= {(1, 1), (8, 1), (16, 2), (256, 32)}
    assert all(row.efficiency == 1 for row in rows if row.actors == 1)
    for row in rows:
        assert row.rollouts_per_s == pytest.approx(row.requests * 80 / row.step_s)
        assert row.learners <= row.requests and 0 < row.actors_busy <= 1
    by_key = {(row.policy, row.shape, row.staleness, row.actors): row for row in rows}
    for (policy, shape, staleness, actors), row in by_key.items():
        if staleness == 0:
            assert by_key[policy, shape, 1, actors].step_s <= row.step_s + 1e-9
    assert by_key["19M", "growing", 1, 64].efficiency > by_key["shipped", "growing", 1, 64].efficiency


def test_where_scaling_stops(rows: list[scaling.Row]) -> None:
    some = [replace(rows[0], actors=actors, efficiency=value) for actors, value in ((1, 1.0), (4, 0.5), (8, 0.49))]
    end = scaling.stops(some)
    assert end is not None and end.actors == 8
    assert scaling.stops(some[:2]) is None
    for shape in scaling.SHAPES:
        end = scaling.stops([row for row in rows if (row.policy, row.shape, row.staleness) == ("shipped", shape, 0)])
        assert end is not None and end.bottleneck.startswith("service")
        text = scaling.conclusion(rows, "shipped", shape, 0)
        assert f"from {end.actors} actors on; the bottleneck: {end.bottleneck}" in text


def test_the_simulation_of_what_was_measured_has_no_learning() -> None:
    simulated = scaling.fixed_weights_rates(MEASURED)
    mean_s = sum(COSTS.request_s) / len(COSTS.request_s)
    assert simulated[1] == pytest.approx(80 / (mean_s + COSTS.service_s), rel=0.1)
    assert 1.7 < simulated[2] / simulated[1] < 2


def test_everything_fits_into_json_a_terminal_and_a_picture(rows: list[scaling.Row], tmp_path: Path) -> None:
    result = json.loads(json.dumps(scaling.result(MEASURED, rows, {"cpu": "test"})))
    assert result["rows"][0].keys() >= {"actors", "staleness", "rollouts_per_s", "efficiency", "bottleneck"}
    assert result["efficiency_below_half_at"].keys() >= {"shipped, fixed, staleness 0", "19M, growing, staleness 1"}
    console = Console(width=80, file=io.StringIO())
    console.print(scaling.scaling_table(rows, "19M", "fixed"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "256" in shown and "…" not in shown
    assert any("median 0.20 s, worst of 3 0.30 s" in line for line in scaling.report_lines(MEASURED))
    scaling.plot_scaling(MEASURED, rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
