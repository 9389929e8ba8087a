"""What a pool of rollout actors gains from its size: training steps on a cluster as a discrete-event simulation.

The service sends each request to a free actor that holds the weights; its reply goes to a verifier. When all are back,
the learners fetch them and learn, and learner 0 publishes new weights; with staleness 1 requests are sent before that.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from bgrpo.bench.output import DPI, make_table

ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ACTORS_PER_NODE, ACTORS_PER_VERIFIER = 8, 4
REQUESTS = {"fixed": (256, 0), "growing": (0, 4)}  # of a step, by its shape: in all, and per actor
WARM_UP, STEPS = 3, 8  # simulated steps: the first ones are not counted
STOPS = 0.5  # efficiency below which scaling has stopped
POLICIES = {"shipped": "the shipped policy (0.6 million weights)", "19M": "a policy of 19 million weights"}
ASSUMPTIONS = [
    f"{ACTORS_PER_NODE} rollout actors per node, a core each; one verifier per {ACTORS_PER_VERIFIER} actors",
    "network 10 Gbit/s per node; weights reach the nodes along a binary tree",
    "decode times of requests are drawn from the measured ones, independently of actor and step",
    "one service, one event loop: half of its time per request goes to sending it, half to its reply",
    "as many learners as learn no longer than the actors decode; the service tells them, one after another, where "
    "a step's groups are, and each fetches all of them; gradients are averaged in a ring",
    f"fixed: a step has {REQUESTS['fixed'][0]} requests; growing: {REQUESTS['growing'][1]} requests per actor",
    "19M: random weights; spread of its decode times and ratio of learning to decoding as of the shipped policy",
    "nothing fails, and no validation or checkpoint interrupts",
]

Curves = dict[tuple[str, str, int], list[dict[str, Any]]]  # rows by policy, shape and rollout.max_staleness


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one process each, measured; see :mod:`bgrpo.bench.scaling.measured_costs`."""

    request_s: tuple[float, ...]  # decode times of single requests, from which the simulation draws
    service_s: float = 0.0  # the service's event loop, per request
    travel_s: float = 0.0  # of a request to an actor and back, during which the actor has nothing to do
    verify_s: float = 0.0  # a verifier, per request
    answer_s: float = 0.0  # the service, per request and learner, for saying where the groups are
    fetch_s: float = 0.0  # each learner, per request, for receiving them
    learn_s: float = 0.0  # one learner, per request, for its update
    publish_s: float = 0.0  # learner 0, for making new weights available
    load_s: float = 0.0  # an actor, for loading them
    weight_bytes: float = 0.0  # of weights, and of gradients


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs where."""

    actors: int  # A, spread evenly over the nodes
    requests: int  # R, of one step
    nodes: int = 1
    learners: int = 1  # data-parallel; each sees all groups and learns from its share
    verifiers: int = 1
    bytes_per_s: float = math.inf  # of the network, per node
    staleness: int = 0  # rollout.max_staleness


def simulate(costs: Costs, cluster: Cluster, steps: int = STEPS, seed: int = 0) -> tuple[float, float]:
    """Seconds from one publication of weights to the next, and the fraction of the actors' time spent decoding."""
    rng = random.Random(seed)
    hop_s = costs.weight_bytes / cluster.bytes_per_s  # nodes that have the weights send them on, one at a time
    nodes_A = [actor // math.ceil(cluster.actors / cluster.nodes) for actor in range(cluster.actors)]
    arrival_A = [math.ceil(math.log2(node + 1)) * hop_s for node in nodes_A]
    ring_s = 2 * (cluster.learners - 1) / cluster.learners * costs.weight_bytes / cluster.bytes_per_s  # of gradients
    learn_s = math.ceil(cluster.requests / cluster.learners) * costs.learn_s + ring_s
    free_A, held_A = [0.0] * cluster.actors, [-1] * cluster.actors
    published, asked, decoding_s = [0.0], 0.0, 0.0  # published: when each version was
    for step in range(WARM_UP + steps):
        version = max(0, step - cluster.staleness)
        for actor in range(cluster.actors):
            if held_A[actor] != version:
                free_A[actor] = max(free_A[actor], published[version] + arrival_A[actor]) + costs.load_s
                held_A[actor] = version
        durations_R = rng.choices(costs.request_s, k=cluster.requests)
        decoding_s += sum(durations_R) if step >= WARM_UP else 0.0
        learning = max(_decode(costs, cluster, asked, free_A, durations_R), published[step])
        published.append(learning + learn_s + costs.publish_s)
        asked = learning if cluster.staleness else published[-1]
    span = published[-1] - published[WARM_UP]
    return span / steps, decoding_s / (cluster.actors * span) if span else 0.0


def _decode(costs: Costs, cluster: Cluster, asked: float, free_A: list[float], durations_R: Sequence[float]) -> float:
    """Decode and verify one step; ``free_A`` is updated. Returns when the learners have all groups."""
    events = sorted((max(asked, free), order, order, False) for order, free in enumerate(free_A))
    verifiers = [asked] * cluster.verifiers
    service, sent = asked, 0
    while events:
        now, _, actor, replied = heapq.heappop(events)
        if replied:
            service = max(service, now) + costs.service_s / 2
            heapq.heapreplace(verifiers, max(verifiers[0], service) + costs.verify_s)
        if sent == len(durations_R):
            free_A[actor] = max(free_A[actor], now)
            continue
        service = max(service, now) + costs.service_s / 2
        reply = service + costs.travel_s / 2 + durations_R[sent] + costs.travel_s / 2
        heapq.heappush(events, (reply, len(free_A) + sent, actor, True))
        sent += 1
    return max(verifiers) + cluster.requests * (cluster.learners * costs.answer_s + costs.fetch_s)


def savings(costs: Costs, cluster: Cluster) -> dict[str, float]:
    """Fraction of the step's time that would be saved if one thing cost nothing, by the name of the thing."""
    whole = math.ceil(cluster.requests / cluster.actors) * cluster.actors
    even_s = tuple(value * cluster.requests / whole for value in costs.request_s)
    without = {
        "decoding": (replace(costs, request_s=(0.0,)), cluster),
        "stragglers": (replace(costs, request_s=(sum(costs.request_s) / len(costs.request_s),)), cluster),
        "requests that do not divide evenly": (replace(costs, request_s=even_s), replace(cluster, requests=whole)),
        "service: sending and receiving": (replace(costs, service_s=0.0, travel_s=0.0), cluster),
        "service: answering learners": (replace(costs, answer_s=0.0), cluster),
        "verification": (replace(costs, verify_s=0.0), cluster),
        "weights": (replace(costs, publish_s=0.0, load_s=0.0, weight_bytes=0.0), cluster),
        "learning": (replace(costs, learn_s=0.0), cluster),
    }
    now, _ = simulate(costs, cluster)
    return {name: 1 - simulate(*changed)[0] / now for name, changed in without.items()}


def simulate_curves(policies: Mapping[str, Costs], completions_per_request: int) -> Curves:
    """All shapes, staleness 0 and 1, and all numbers of actors. ``efficiency``: rate per actor, relative to one alone.

    ``bottleneck`` is what costs most apart from decoding and learning, ``bottleneck_share`` its fraction of a step.
    """
    curves: Curves = {}
    for (policy, costs), shape, staleness in product(policies.items(), REQUESTS, (0, 1)):
        curve = curves[policy, shape, staleness] = []
        for actors in ACTORS:
            requests = REQUESTS[shape][0] + REQUESTS[shape][1] * actors
            learners = max(1, min(math.ceil(actors * costs.learn_s / fmean(costs.request_s)), requests))
            nodes, verifiers = (math.ceil(actors / size) for size in (ACTORS_PER_NODE, ACTORS_PER_VERIFIER))
            cluster = Cluster(actors, requests, nodes, learners, verifiers, 10e9 / 8, staleness)
            step_s, busy = simulate(costs, cluster)
            rate = requests * completions_per_request / step_s
            saved = {name: x for name, x in savings(costs, cluster).items() if name not in ("decoding", "learning")}
            bottleneck = max(saved, key=saved.__getitem__)
            curve.append({
                "policy": policy, "shape": shape, "staleness": staleness, "actors": actors, "nodes": cluster.nodes,
                "learners": learners, "requests": requests, "step_s": step_s, "rollouts_per_s": rate,
                "efficiency": rate / (actors * (curve[0]["rollouts_per_s"] if curve else rate)),
                "actors_busy": busy, "bottleneck": bottleneck, "bottleneck_share": saved[bottleneck],
            })  # fmt: skip
    return curves


def ending(curve: Sequence[Mapping[str, Any]]) -> tuple[int | None, str]:
    """The first number of actors whose efficiency is below :data:`STOPS`, and a sentence that says why."""
    end = next((row for row in curve if row["efficiency"] < STOPS), None)
    row = end or curve[-1]
    still = f"still {row['efficiency']:.0%} efficient with {row['actors']} actors; next"
    below = f"below {STOPS:.0%} efficiency from {row['actors']} actors on; the bottleneck"
    why = f"{row['bottleneck']} ({row['bottleneck_share']:.0%} of a step)"
    return end["actors"] if end else None, f"{below if end else still}: {why}"


def scaling_table(curves: Curves, policy: str, shape: str) -> Table:
    """One policy and shape, staleness 0 beside 1."""
    sizes = ["actors", "nodes", "learners", "requests"]
    cells = [
        [str(rows[0][name]) for name in sizes]
        + [text for row in rows for text in (f"{row['rollouts_per_s']:,.0f}", f"{row['efficiency']:.0%}")]
        for rows in zip(curves[policy, shape, 0], curves[policy, shape, 1], strict=True)
    ]
    title = f"simulated: {POLICIES[policy]}, {shape} step; completions/s and efficiency"
    return make_table(title, [*sizes, "staleness 0", "", "staleness 1", ""], cells)


def draw_scaling(curves: Curves, measured: Mapping[int, float]) -> Figure:
    """Completions per second against actors, one panel per policy; ``measured``: of the shipped one, weights fixed."""
    figure = Figure(figsize=(11, 4.6), dpi=DPI, layout="constrained")
    for (policy, title), axes in zip(POLICIES.items(), figure.subplots(1, len(POLICIES)), strict=True):
        mine = {key[1:]: [row["rollouts_per_s"] for row in curve] for key, curve in curves.items() if key[0] == policy}
        for (shape, staleness), rates in mine.items():
            style = {"fixed": "oC0", "growing": "sC1"}[shape] + ("--", "-")[staleness]
            axes.plot(ACTORS, rates, style, markersize=4, label=f"{shape} step, staleness {staleness}")
        proportional = [max(rates[0] for rates in mine.values()) * actors for actors in ACTORS]
        axes.plot(ACTORS, proportional, ":", color="grey", label="proportional")
        if policy == "shipped":
            axes.plot(list(measured), list(measured.values()), "kx", label="measured, weights fixed")
        axes.set(title=title, xlabel="rollout actors", ylabel="completions per second", xscale="log", yscale="log")
        axes.set_xticks(ACTORS, [str(actors) for actors in ACTORS])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
