"""The whole benchmark: 1 and 2 rollout actors measured here, up to 256 simulated from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bgrpo.bench.scaling.measured_costs import Measured, measure_costs
from bgrpo.bench.scaling.simulation import ASSUMPTIONS, Curves, ending, simulate_curves


def measure_scaling(show: Callable[[str], None]) -> tuple[Measured, Curves]:
    """Measure and simulate; ``show`` is told what is being done."""
    measured = measure_costs(lambda what: show(f"measuring {what}"))
    show("simulating")
    policies = {"shipped": measured.costs, "19M": measured.large}
    return measured, simulate_curves(policies, measured.completions_per_request)


def scaling_result(measured: Measured, curves: Curves, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "measured": asdict(measured),
        "simulated_at_fixed_weights": measured.simulated_rates(),
        "rows": [row for curve in curves.values() for row in curve],
        "efficiency_below_half_at": {
            f"{policy}, {shape}, staleness {staleness}": ending(curve)[0]
            for (policy, shape, staleness), curve in curves.items()
        },
        "assumptions": ASSUMPTIONS,
        "machine": machine,
    }
