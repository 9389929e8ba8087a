"""What the scaling simulation needs to know, measured on this machine through the real rollout service."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
import torch
from rich.table import Table
from transformers import PreTrainedModel

from bgrpo.bench.output import make_table
from bgrpo.bench.replayed_groups import ReplayedGroups
from bgrpo.bench.scaling.simulation import Cluster, Costs, simulate
from bgrpo.bench.turns import Turn, interleave, timed
from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.rollout.remote import ServiceRolloutSource, answer
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.session.ray_session import Demand, ray_session
from bgrpo.groups import ScoredGroup
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.flat_weights import flatten_parameters, load_flat_parameters
from bgrpo.policies.io import LoadedPolicy, save_policy
from bgrpo.runs.preparation import Preparation, check_input
from bgrpo.scoring.attempts import attempts_of, trial_of
from bgrpo.scoring.judge import Judge

REQUESTS = 12
"""Of one measured batch."""
ROUNDS = 5
LEARNING_STEPS = 6
START_S = 180.0
LARGE = {"layers": 6, "heads": 8, "width": 512, "context": 512}
"""A policy of 19 million weights, 76 MB."""
LARGE_ACTORS = 4


_PER_REQUEST = ("learn_s", "verify_s", "service_s", "travel_s", "answer_s", "fetch_s")
_PER_VERSION = ("publish_s", "load_s")


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of this machine.

    ``large`` is a policy of 19 million random weights. Its answers have all the same length, so its requests are given
    the spread of the shipped policy's; its learning is given the same ratio to decoding.
    """

    costs: Costs  # of the shipped policy on quickstart's problems
    completions_per_request: int  # of that workload
    requests: int  # of one measured batch
    rollouts_per_s: dict[int, float]  # by number of rollout actors, weights fixed
    large: Costs
    large_publish_s: list[float]  # until LARGE_ACTORS actors hold its new weights, once per publication

    def simulated_rates(self) -> dict[int, float]:
        """Completions per second that the simulation gives for what was measured: no learning, one learner."""
        costs = replace(self.costs, learn_s=0.0, publish_s=0.0, load_s=0.0)
        completions = self.requests * self.completions_per_request
        return {n: completions / simulate(costs, Cluster(n, self.requests))[0] for n in self.rollouts_per_s}

    def tables(self) -> list[Table]:
        """What was measured, for people."""
        simulated, published = self.simulated_rates(), sorted(self.large_publish_s)
        rates = [[str(n), f"{rate:.0f}", f"{simulated[n]:.0f}"] for n, rate in self.rollouts_per_s.items()]
        rows = []
        for costs in (self.costs, self.large):
            twentieths = statistics.quantiles(costs.request_s, n=20)
            decode = [statistics.median(costs.request_s), twentieths[0], twentieths[-1]]
            others = [getattr(costs, name) for name in _PER_REQUEST + _PER_VERSION]
            rows.append([f"{1e3 * seconds:.1f}" for seconds in decode + others])
        names = ["decode", "decode, 5 %", "decode, 95 %", *(name.removesuffix("_s") for name in _PER_REQUEST)]
        names += [f"{name.removesuffix('_s')}, per version" for name in _PER_VERSION]
        weights = f"{self.large.weight_bytes / 1e6:.0f} MB of weights until {LARGE_ACTORS} actors hold them: seconds"
        held = [f"{statistics.median(published):.2f}", f"{published[-1]:.2f}", str(len(published))]
        return [
            make_table("completions/s at fixed weights", ["rollout actors", "measured", "simulated"], rates),
            make_table(weights, ["", "median", "worst", "of"], [["", *held]]),
            make_table("milliseconds per request", ["", "shipped", "19M"], zip(names, *rows, strict=True)),
        ]


class _Service:
    """A started service with its client; the same weights under as many versions as are asked for."""

    def __init__(self, config: TrainConfig, prepared: Preparation) -> None:
        self.config = config
        self.model = prepared.policy.model
        settings = decode_settings(config, prepared.policy.tokenizer)
        self.actor: Any = start_service(config, settings, self.model.config.vocab_size)
        self.source = ServiceRolloutSource(self.actor, config, prepared.splits.train)

    def wait_for_actors(self) -> None:
        """Until every rollout actor is up."""
        answer(self.actor.ready.remote(START_S), START_S + 30)
        deadline = time.monotonic() + START_S
        while any(actor["state"] in ("pending", "starting") for actor in self.status()["rollout"]["actors"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all rollout actors were up after {START_S:g} s")
            time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        return answer(self.actor.status.remote(), START_S)

    def publish(self, version: int) -> tuple[float, float]:
        """Seconds until publishing has returned, and until all actors hold the version."""
        start = time.perf_counter()
        returned = timed(lambda: self.source.publish(version, self.model)).seconds
        while any(actor["version"] != version for actor in self.status()["rollout"]["actors"]):
            time.sleep(0.002)
        return returned, time.perf_counter() - start


def measure_costs(show: Callable[[str], None]) -> Measured:
    """Measure on a Ray of our own; takes about a minute.

    Args:
        show: told what is being measured.
    """
    config = load_config(TrainConfig, "quickstart", ["rollout.threads=1", "learner.threads=1"])
    prepared = check_input(config)
    with ray_session([Demand("rollout actors", LARGE_ACTORS, 0.0, 0.0)]):
        show("decoding with 1 and 2 actors")
        with _service(config, prepared, 1) as one, _service(config, prepared, 2) as two:
            rollouts_per_s, groups, costs = _decode(one, two, prepared)
        show("verification and learning")
        costs |= _verification_and_learning(config, prepared, groups)
        show("a policy of 19 million weights on 4 actors")
        large, large_publish_s = _large_policy(config, prepared, Costs(**costs))
    completions = sum(len(group.completions) for group in groups) // REQUESTS
    return Measured(Costs(**costs), completions, REQUESTS, rollouts_per_s, large, large_publish_s)


@contextmanager
def _service(config: TrainConfig, prepared: Preparation, actors: int) -> Iterator[_Service]:
    rollout = config.rollout.model_copy(update={"actors": actors, "cpus_per_actor": 0.0})
    service = _Service(config.model_copy(update={"rollout": rollout}), prepared)
    try:
        service.wait_for_actors()
        yield service
    finally:
        ray.get(service.actor.shutdown.remote(), timeout=30)
        ray.kill(service.actor)


def _decode(
    one: _Service, two: _Service, prepared: Preparation
) -> tuple[dict[int, float], list[ScoredGroup], dict[str, Any]]:
    """Batches of requests on one actor and on two, in turns, with the same weights."""
    batch = REQUESTS * one.config.rollout.prompts_per_request
    indices = [index % len(prepared.splits.train) for index in range(batch)]
    publish_s = [service.publish(0)[0] for service in (one, two)]
    for service in (one, two):  # first batches pay for what is set up on first use
        groups = service.source.collect(0, 0, indices, 0)
    steps = {service: count(1) for service in (one, two)}

    def collect(service: _Service) -> Turn:
        return timed(lambda: service.source.collect(next(steps[service]), 0, indices, 0))

    before = one.status()
    turns = interleave({"1": partial(collect, one), "2": partial(collect, two)}, ROUNDS)
    after = one.status()
    # groups that are there already: the service's processor time, and the whole time
    answered = [timed(lambda: one.source.collect(ROUNDS, 0, indices, 0)) for _ in range(ROUNDS)]
    answered_s = sum(turn.seconds for turn in answered) / (ROUNDS * REQUESTS)
    answer_s = (one.status()["cpu_s"] - after["cpu_s"]) / (ROUNDS * REQUESTS)
    publish_s += [one.publish(version)[0] for version in range(1, ROUNDS + 1)]
    request_s = after["request_s"][-ROUNDS * REQUESTS :]
    service_s = (after["cpu_s"] - before["cpu_s"]) / (ROUNDS * REQUESTS)
    batch_s = {int(actors): statistics.median(turn.seconds for turn in of) for actors, of in turns.items()}
    between_s = batch_s[1] / REQUESTS - statistics.mean(request_s)
    completions = sum(len(group.completions) for group in groups)
    return {actors: completions / seconds for actors, seconds in batch_s.items()}, groups, {
        "request_s": tuple(request_s),
        "service_s": service_s,
        "travel_s": max(0.0, between_s - service_s - answered_s),
        "answer_s": answer_s,
        "fetch_s": max(0.0, answered_s - answer_s),
        "publish_s": statistics.median(publish_s),
        **_weights(one.model),
    }  # fmt: skip


def _weights(model: PreTrainedModel) -> dict[str, float]:
    """One actor's copy out of the object store, and its size."""
    flat = flatten_parameters(model)
    buffer = ray.get(ray.put(flat))
    turns = [timed(lambda: load_flat_parameters(model, buffer)) for _ in range(ROUNDS)]
    return {"load_s": statistics.median(turn.seconds for turn in turns), "weight_bytes": float(flat.nbytes)}


def _verification_and_learning(
    config: TrainConfig, prepared: Preparation, groups: list[ScoredGroup]
) -> dict[str, float]:
    """Seconds per request of one verifier and of one learner."""
    items = attempts_of([prepared.splits.train[group.index] for group in groups], groups)
    with Judge(config).start(trial_of(prepared.splits.train)) as checks:
        verify_s = timed(lambda: checks.run(items)).seconds / REQUESTS
    requests = config.rollout.prompts_per_step / config.rollout.prompts_per_request
    return {"verify_s": verify_s, "learn_s": _learning_s(config, prepared, groups) / requests}


def _learning_s(config: TrainConfig, prepared: Preparation, groups: list[ScoredGroup]) -> float:
    """The update of one of quickstart's steps, every group of it used."""
    from bgrpo.learning.trainer import BGRPOTrainer

    groups = groups[: config.rollout.prompts_per_step]
    threads = torch.get_num_threads()
    torch.set_num_threads(config.learner.threads)
    rollout = config.rollout.model_copy(update={"skip_uninformative": False})
    short = config.model_copy(update={"steps": LEARNING_STEPS, "rollout": rollout})
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bgrpo-scaling-") as folder:
        policy, source = prepared.policy, ReplayedGroups(groups)
        trainer = BGRPOTrainer(
            short, policy.model, policy.tokenizer, source, len(groups), Path(folder),
            on_step=lambda metrics: seconds.append(metrics["seconds/learn"]),
        )  # fmt: skip
        trainer.run()
    torch.set_num_threads(threads)
    return statistics.median(seconds[1:])


def _large_policy(config: TrainConfig, prepared: Preparation, costs: Costs) -> tuple[Costs, list[float]]:
    """Publish a large policy again and again, and decode one request with it."""
    from bgrpo.policies.model import build_policy

    tokenizer = prepared.policy.tokenizer
    model = build_policy(tokenizer, **LARGE, seed=0)
    with tempfile.TemporaryDirectory(prefix="bgrpo-scaling-") as folder:
        save_policy(model, tokenizer, Path(folder) / "policy")
        large = Preparation(LoadedPolicy(model, tokenizer, folder), prepared.splits)
        policy = config.policy.model_copy(update={"path": str(Path(folder) / "policy")})
        with _service(config.model_copy(update={"policy": policy}), large, LARGE_ACTORS) as service:
            published = []
            for version in range(2 * ROUNDS):
                published.append(service.publish(version))
                time.sleep(0.5)  # a training step between two publications: what was dropped is freed meanwhile
            for step in range(3):
                service.source.collect(step, version, list(range(config.rollout.prompts_per_request)), 0)
            request_s = min(service.status()["request_s"])
    scale = request_s / statistics.mean(costs.request_s)
    large_costs = replace(
        costs,
        request_s=tuple(scale * value for value in costs.request_s),
        learn_s=scale * costs.learn_s,
        publish_s=statistics.median(returned for returned, _ in published),
        **_weights(model),
    )
    return large_costs, [held for _, held in published]
