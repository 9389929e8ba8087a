"""Throughput against the number of rollout actors: measured where there are cores, simulated beyond."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgrpo.bench.scaling.model import Cluster, Costs, savings, simulate
from bgrpo.display.png import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from bgrpo.bench.scaling.costs import Measured

ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ACTORS_PER_NODE = 8
ACTORS_PER_VERIFIER = 4
FIXED_REQUESTS = 256
REQUESTS_PER_ACTOR = 4
NETWORK_BYTES_PER_S = 10e9 / 8
STEPS = 8  # simulated ones, after the warm-up
STOPS = 0.5  # efficiency below which scaling has stopped
SHAPES = ("fixed", "growing")
POLICIES = {"shipped": "the shipped policy (0.6 million weights)", "19M": "a policy of 19 million weights"}


@dataclass(frozen=True, slots=True)
class Row:
    """One simulated cluster.

    Attributes:
        policy: key of :data:`POLICIES`.
        shape: ``fixed``: a step has :data:`FIXED_REQUESTS` requests; ``growing``: :data:`REQUESTS_PER_ACTOR` per actor.
        efficiency: rate per actor, relative to one actor of the same policy, shape and staleness.
        actors_busy: fraction of the actors' time spent decoding.
        bottleneck: what, apart from decoding and learning themselves, costs most of the step's time.
        bottleneck_share: fraction of the step's time that would be saved without it.
    """

    policy: str
    shape: str
    staleness: int
    actors: int
    nodes: int
    learners: int
    requests: int
    step_s: float
    rollouts_per_s: float
    efficiency: float
    actors_busy: float
    bottleneck: str
    bottleneck_share: float


def simulate_rows(policy: str, costs: Costs, completions_per_request: int) -> list[Row]:
    """All shapes, both values of ``rollout.max_staleness``, and all numbers of actors, for one policy."""
    rows: list[Row] = []
    for shape in SHAPES:
        for staleness in (0, 1):
            alone = 0.0
            for actors in ACTORS:
                cluster = cluster_of(costs, shape, staleness, actors)
                result = simulate(costs, cluster, STEPS)
                rate = cluster.requests * completions_per_request / result.step_s
                alone = alone or rate
                saved = savings(costs, cluster, STEPS)
                overheads = {name: share for name, share in saved.items() if name not in ("decoding", "learning")}
                bottleneck = max(overheads, key=lambda name: overheads[name])
                rows.append(
                    Row(
                        policy, shape, staleness, actors, cluster.nodes, cluster.learners, cluster.requests,
                        result.step_s, rate, rate / (actors * alone), result.actors_busy,
                        bottleneck, overheads[bottleneck],
                    )
                )  # fmt: skip
    return rows


def cluster_of(costs: Costs, shape: str, staleness: int, actors: int) -> Cluster:
    """The simulated cluster: as many learners as it takes to learn no longer than the actors decode."""
    requests = FIXED_REQUESTS if shape == "fixed" else REQUESTS_PER_ACTOR * actors
    learners = math.ceil(actors * costs.learn_s / statistics.mean(costs.request_s))
    return Cluster(
        actors=actors,
        requests=requests,
        nodes=math.ceil(actors / ACTORS_PER_NODE),
        learners=max(1, min(learners, requests)),
        verifiers=math.ceil(actors / ACTORS_PER_VERIFIER),
        bytes_per_s=NETWORK_BYTES_PER_S,
        staleness=staleness,
    )


def assumptions() -> list[str]:
    """What the simulation takes for granted."""
    return [
        f"{ACTORS_PER_NODE} rollout actors per node, a core each; one verifier per {ACTORS_PER_VERIFIER} actors",
        f"network {NETWORK_BYTES_PER_S * 8e-9:g} Gbit/s per node; weights reach the nodes along a binary tree",
        "decode times of requests are drawn from the measured ones, independently of actor and step",
        "one service, one event loop: half of its time per request goes to sending it, half to its reply",
        "as many learners as learn no longer than the actors decode; the service tells them, one after another, where "
        "a step's groups are, and each fetches all of them; gradients are averaged in a ring",
        f"fixed: a step has {FIXED_REQUESTS} requests; growing: {REQUESTS_PER_ACTOR} requests per actor",
        "19M: random weights; spread of its decode times and ratio of learning to decoding as of the shipped policy",
        "nothing fails, and no validation or checkpoint interrupts",
    ]


def stops(rows: Sequence[Row]) -> Row | None:
    """The first row, in order of actors, whose efficiency is below :data:`STOPS`."""
    return next((row for row in sorted(rows, key=lambda row: row.actors) if row.efficiency < STOPS), None)


def fixed_weights_rates(measured: Measured) -> dict[int, float]:
    """Completions per second that the simulation gives for what was measured: no learning, one learner."""
    costs = replace(measured.costs, learn_s=0.0, publish_s=0.0, load_s=0.0)
    completions = measured.requests * measured.completions_per_request
    return {
        actors: completions / simulate(costs, Cluster(actors, measured.requests), STEPS).step_s
        for actors in measured.rollouts_per_s
    }


def result(measured: Measured, rows: Sequence[Row], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for machines."""
    ends = {}
    for policy in POLICIES:
        for shape in SHAPES:
            for staleness in (0, 1):
                of = [row for row in rows if (row.policy, row.shape, row.staleness) == (policy, shape, staleness)]
                end = stops(of)
                ends[f"{policy}, {shape}, staleness {staleness}"] = None if end is None else end.actors
    return {
        "measured": asdict(measured),
        "simulated_at_fixed_weights": fixed_weights_rates(measured),
        "rows": [asdict(row) for row in rows],
        "efficiency_below_half_at": ends,
        "assumptions": assumptions(),
        "machine": machine,
    }


def report_lines(measured: Measured) -> list[str]:
    """The measured figures and the assumptions, for people."""
    simulated = fixed_weights_rates(measured)
    lines = [
        f"{actors} rollout actor{'s' * (actors > 1)}: {rate:.0f} completions/s (simulation: {simulated[actors]:.0f})"
        for actors, rate in measured.rollouts_per_s.items()
    ]
    publish_s = sorted(measured.large_publish_s)
    lines.append(
        f"{measured.large.weight_bytes / 1e6:.0f} MB of weights until 4 actors hold them: median "
        f"{statistics.median(publish_s):.2f} s, worst of {len(publish_s)} {publish_s[-1]:.2f} s"
    )
    for name, costs in (("shipped", measured.costs), ("19M", measured.large)):
        decode = statistics.quantiles(costs.request_s, n=20)
        times = {key: value for key, value in asdict(costs).items() if key.endswith("_s") and key != "request_s"}
        ms = {key: f"{value * 1e3:.1f} ms" for key, value in times.items()}
        lines.append(
            f"{name}, per request: decode {statistics.median(costs.request_s) * 1e3:.0f} ms (5-95 %: "
            f"{decode[0] * 1e3:.0f}-{decode[-1] * 1e3:.0f}), learn {ms['learn_s']}, verify {ms['verify_s']}, service "
            f"{ms['service_s']}, travel {ms['travel_s']}, answer {ms['answer_s']} and {ms['fetch_s']}; per version: "
            f"publish {ms['publish_s']}, load {ms['load_s']}"
        )
    return [*lines, "the simulation assumes:", *(f"- {assumption}" for assumption in assumptions())]


def scaling_table(rows: Sequence[Row], policy: str, shape: str) -> Table:
    """One policy and shape, staleness 0 beside 1."""
    from rich.table import Table

    table = Table(title=f"simulated: {POLICIES[policy]}, {shape} step; completions/s and efficiency")
    for name in ("actors", "nodes", "learners", "requests", "staleness 0", "", "staleness 1", ""):
        table.add_column(name, justify="right")
    of = {(row.actors, row.staleness): row for row in rows if (row.policy, row.shape) == (policy, shape)}
    for actors in ACTORS:
        fresh, ahead = of[actors, 0], of[actors, 1]
        table.add_row(
            *(str(value) for value in (actors, fresh.nodes, fresh.learners, fresh.requests)),
            *(text for row in (fresh, ahead) for text in (f"{row.rollouts_per_s:,.0f}", f"{row.efficiency:.0%}")),
        )
    return table


def conclusion(rows: Sequence[Row], policy: str, shape: str, staleness: int) -> str:
    """Where it stops, and why."""
    of = [row for row in rows if (row.policy, row.shape, row.staleness) == (policy, shape, staleness)]
    end = stops(of)
    name = f"{POLICIES[policy]}, {shape} step, staleness {staleness}"
    if end is None:
        last = of[-1]
        return (
            f"{name}: still {last.efficiency:.0%} efficient with {last.actors} actors; next: {last.bottleneck} "
            f"({last.bottleneck_share:.0%} of a step)"
        )
    return (
        f"{name}: below {STOPS:.0%} efficiency from {end.actors} actors on; the bottleneck: {end.bottleneck} "
        f"({end.bottleneck_share:.0%} of a step)"
    )


def plot_scaling(measured: Measured, rows: Sequence[Row], path: Path) -> None:
    """Completions per second against actors, one panel per policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(POLICIES))
    for axes, (policy, title) in zip(panels, POLICIES.items(), strict=True):
        _draw(axes, [row for row in rows if row.policy == policy], title)
    panels[0].plot(
        list(measured.rollouts_per_s), list(measured.rollouts_per_s.values()), "kx", label="measured, weights fixed"
    )
    panels[0].legend(fontsize=8)
    write_png(figure, path)


def _draw(axes: Axes, rows: Sequence[Row], title: str) -> None:
    for shape, marker in zip(SHAPES, "os", strict=True):
        for staleness, line in ((0, "--"), (1, "-")):
            of = [row for row in rows if (row.shape, row.staleness) == (shape, staleness)]
            rates = [row.rollouts_per_s for row in of]
            axes.plot(
                ACTORS, rates, line, marker=marker, markersize=4, color="C0" if shape == "fixed" else "C1",
                label=f"{shape} step, staleness {staleness}",
            )  # fmt: skip
    best = max(row.rollouts_per_s for row in rows if row.actors == 1)
    axes.plot(ACTORS, [best * actors for actors in ACTORS], ":", color="grey", label="proportional")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ACTORS, [str(actors) for actors in ACTORS])
    axes.set(title=title, xlabel="rollout actors", ylabel="completions per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
