"""Training steps on a cluster as a discrete-event simulation: what a pool of rollout actors gains from its size.

A step's problems are cut into requests. The service, one event loop, sends each to an actor that is free and holds the
weights; its reply goes to a verifier. When all are back every learner fetches all groups, makes its share of the
update, and learner 0 publishes new weights, which reach the nodes along a binary tree and are then loaded by every
actor. With staleness 1 the next step's requests are sent as soon as a step's groups are there, with the weights at
hand. Shape letters: A actors, R requests of one step.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

WARM_UP = 3  # steps that are simulated but not counted


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one process each, measured; see :mod:`bgrpo.bench.scaling.costs`.

    Attributes:
        request_s: decode times of single requests, from which the simulation draws.
        service_s: the service's event loop, per request: half for sending it, half for its reply.
        travel_s: of a request to an actor and back, during which the actor has nothing to do.
        verify_s: a verifier, per request.
        answer_s: the service, per request and learner, for saying where the groups are.
        fetch_s: each learner, per request, for receiving them.
        learn_s: one learner, per request, for its update.
        publish_s: learner 0, for making new weights available.
        load_s: an actor, for loading them.
        weight_bytes: size of weights, and of gradients.
    """

    request_s: tuple[float, ...]
    service_s: float = 0.0
    travel_s: float = 0.0
    verify_s: float = 0.0
    answer_s: float = 0.0
    fetch_s: float = 0.0
    learn_s: float = 0.0
    publish_s: float = 0.0
    load_s: float = 0.0
    weight_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs where.

    Attributes:
        actors: A, rollout actors, spread evenly over the nodes.
        requests: R, of one step.
        nodes: machines.
        learners: data-parallel; each sees all groups and learns from its share.
        verifiers: processes.
        bytes_per_s: of the network, per node.
        staleness: ``rollout.max_staleness``.
    """

    actors: int
    requests: int
    nodes: int = 1
    learners: int = 1
    verifiers: int = 1
    bytes_per_s: float = math.inf
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class Simulated:
    """Means over the steps after the warm-up.

    Attributes:
        step_s: from one publication of weights to the next.
        actors_busy: fraction of the actors' time spent decoding.
    """

    step_s: float
    actors_busy: float


def simulate(costs: Costs, cluster: Cluster, steps: int = 20, seed: int = 0) -> Simulated:
    """Run ``steps`` steps after the warm-up."""
    rng = random.Random(seed)
    arrival_s = _arrivals(costs, cluster)
    learn_s = learning_s(costs, cluster)
    free_A = [0.0] * cluster.actors
    held_A = [-1] * cluster.actors
    published = [0.0]  # when each version was
    asked, decoding_s = 0.0, 0.0
    for step in range(WARM_UP + steps):
        version = max(0, step - cluster.staleness)
        for actor in range(cluster.actors):
            if held_A[actor] != version:
                free_A[actor] = max(free_A[actor], published[version] + arrival_s[actor]) + costs.load_s
                held_A[actor] = version
        durations_R = rng.choices(costs.request_s, k=cluster.requests)
        collected = _decode(costs, cluster, asked, free_A, durations_R)
        decoding_s += sum(durations_R) if step >= WARM_UP else 0.0
        learning = max(collected, published[step])
        published.append(learning + learn_s + costs.publish_s)
        asked = learning if cluster.staleness else published[-1]
    span = published[-1] - published[WARM_UP]
    return Simulated(span / steps, decoding_s / (cluster.actors * span) if span else 0.0)


def learning_s(costs: Costs, cluster: Cluster) -> float:
    """One step's update: a learner's share of the groups, and the ring all-reduce of the gradients."""
    share = math.ceil(cluster.requests / cluster.learners) * costs.learn_s
    ring = 2 * (cluster.learners - 1) / cluster.learners * costs.weight_bytes / cluster.bytes_per_s
    return share + ring


def savings(costs: Costs, cluster: Cluster, steps: int = 20, seed: int = 0) -> dict[str, float]:
    """Fraction of the step's time that would be saved if one thing cost nothing, by the name of the thing."""
    mean = sum(costs.request_s) / len(costs.request_s)
    whole = math.ceil(cluster.requests / cluster.actors) * cluster.actors
    without = {
        "decoding": (replace(costs, request_s=(0.0,)), cluster),
        "stragglers": (replace(costs, request_s=(mean,)), cluster),
        "requests that do not divide evenly": (
            replace(costs, request_s=tuple(value * cluster.requests / whole for value in costs.request_s)),
            replace(cluster, requests=whole),
        ),
        "service: sending and receiving": (replace(costs, service_s=0.0, travel_s=0.0), cluster),
        "service: answering learners": (replace(costs, answer_s=0.0), cluster),
        "verification": (replace(costs, verify_s=0.0), cluster),
        "weights": (replace(costs, publish_s=0.0, load_s=0.0, weight_bytes=0.0), cluster),
        "learning": (replace(costs, learn_s=0.0), cluster),
    }
    now = simulate(costs, cluster, steps, seed).step_s
    return {name: 1 - simulate(*changed, steps, seed).step_s / now for name, changed in without.items()}


def _arrivals(costs: Costs, cluster: Cluster) -> list[float]:
    """When published weights reach each actor's node: those that have them send them on, one at a time."""
    per_node = math.ceil(cluster.actors / cluster.nodes)
    hop_s = costs.weight_bytes / cluster.bytes_per_s
    return [math.ceil(math.log2(actor // per_node + 1)) * hop_s for actor in range(cluster.actors)]


def _decode(costs: Costs, cluster: Cluster, asked: float, free_A: list[float], durations_R: Sequence[float]) -> float:
    """Decode and verify one step; ``free_A`` is updated. Returns when the learners have all groups."""
    order = itertools.count()
    events = [(max(asked, free), next(order), actor, False) for actor, free in enumerate(free_A)]
    heapq.heapify(events)
    waiting = iter(durations_R)
    verifiers = [asked] * cluster.verifiers
    service, done = asked, asked
    while events:
        now, _, actor, replied = heapq.heappop(events)
        if replied:
            service = max(service, now) + costs.service_s / 2
            verified = max(verifiers[0], service) + costs.verify_s
            heapq.heapreplace(verifiers, verified)
            done = max(done, verified)
        duration = next(waiting, None)
        if duration is None:
            free_A[actor] = max(free_A[actor], now)
            continue
        service = max(service, now) + costs.service_s / 2
        reply = service + costs.travel_s / 2 + duration + costs.travel_s / 2
        heapq.heappush(events, (reply, next(order), actor, True))
    return done + cluster.requests * (cluster.learners * costs.answer_s + costs.fetch_s)
