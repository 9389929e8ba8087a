"""What the scaling simulation needs to know, measured on this machine through the real rollout service."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from bgrpo.bench.scaling.model import Costs
from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.rollout.remote import ServiceRolloutSource, answer
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.session.session import Demand, ray_session
from bgrpo.groups import ScoredGroup
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.flat import flatten_parameters, load_flat_parameters
from bgrpo.policies.io import LoadedPolicy, save_policy
from bgrpo.runs.preparation import Preparation, check_input
from bgrpo.scoring.judge import Judge, finished_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REQUESTS = 12
"""Of one measured batch."""
ROUNDS = 5
LEARNING_STEPS = 6
START_S = 180.0
LARGE = {"layers": 6, "heads": 8, "width": 512, "context": 512}
"""A policy of 19 million weights, 76 MB."""
LARGE_ACTORS = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of this machine.

    Attributes:
        costs: of the shipped policy on quickstart's problems.
        completions_per_request: of that workload.
        requests: of one measured batch.
        rollouts_per_s: by number of rollout actors, weights fixed.
        large: of a policy of 19 million random weights. Its answers have all the same length, so that its requests are
            given the spread of the shipped policy's; its learning is given the same ratio to decoding.
        large_publish_s: until :data:`LARGE_ACTORS` actors hold its new weights, once per publication.
    """

    costs: Costs
    completions_per_request: int
    requests: int
    rollouts_per_s: dict[int, float]
    large: Costs
    large_publish_s: list[float]


class _Service:
    """A started service with its client; the same weights under as many versions as are asked for."""

    def __init__(self, config: TrainConfig, prepared: Preparation) -> None:
        self.config = config
        self.model = prepared.policy.model
        self.actor: Any = start_service(
            config,
            decode_settings(config, prepared.policy.tokenizer),
            prepared.splits.train,
            prepared.policy.model.config.vocab_size,
        )
        self.source = ServiceRolloutSource(self.actor, config)

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
        self.source.publish(version, self.model)
        returned = time.perf_counter() - start
        while any(actor["version"] != version for actor in self.status()["rollout"]["actors"]):
            time.sleep(0.002)
        return returned, time.perf_counter() - start


def measure(show: Callable[[str], None]) -> Measured:
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
    indices = list(range(REQUESTS * one.config.rollout.prompts_per_request))
    indices = [index % len(prepared.splits.train) for index in indices]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    publish_s = [service.publish(0)[0] for service in (one, two)]
    for service in (one, two):  # first batches pay for what is set up on first use
        service.source.collect(0, 0, indices, 0)
    before = one.status()
    for step in range(1, ROUNDS + 1):
        for actors, service in ((1, one), (2, two)):
            start = time.perf_counter()
            groups = service.source.collect(step, 0, indices, 0)
            seconds[actors].append(time.perf_counter() - start)
    after = one.status()
    answer_s, answered_s = _answer_s(one, indices)
    publish_s += [one.publish(version)[0] for version in range(1, ROUNDS + 1)]
    request_s = after["request_s"][-ROUNDS * REQUESTS :]
    service_s = (after["cpu_s"] - before["cpu_s"]) / (ROUNDS * REQUESTS)
    between_s = statistics.median(seconds[1]) / REQUESTS - statistics.mean(request_s)
    completions = sum(len(group.completions) for group in groups)
    rates = {actors: completions / statistics.median(times) for actors, times in seconds.items()}
    return rates, groups, {
        "request_s": tuple(request_s),
        "service_s": service_s,
        "travel_s": max(0.0, between_s - service_s - answered_s),
        "answer_s": answer_s,
        "fetch_s": max(0.0, answered_s - answer_s),
        "publish_s": statistics.median(publish_s),
        "load_s": _load_s(one.model),
        "weight_bytes": float(flatten_parameters(one.model).nbytes),
    }  # fmt: skip


def _answer_s(service: _Service, indices: list[int]) -> tuple[float, float]:
    """Per request, for groups that are there already: the service's processor time, and the whole time."""
    busy = service.status()["cpu_s"]
    start = time.perf_counter()
    for _ in range(ROUNDS):
        service.source.collect(ROUNDS, 0, indices, 0)
    whole_s = (time.perf_counter() - start) / (ROUNDS * REQUESTS)
    return (service.status()["cpu_s"] - busy) / (ROUNDS * REQUESTS), whole_s


def _load_s(model: PreTrainedModel) -> float:
    """One actor's copy out of the object store."""
    buffer = ray.get(ray.put(flatten_parameters(model)))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        load_flat_parameters(model, buffer)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _verification_and_learning(
    config: TrainConfig, prepared: Preparation, groups: list[ScoredGroup]
) -> dict[str, float]:
    """Seconds per request of one verifier and of one learner."""
    items = finished_texts([prepared.splits.train[group.index] for group in groups], groups)
    with Judge(config).start() as checks:
        checks.run(items[:1])  # the child's start
        start = time.perf_counter()
        checks.run(items)
        verify_s = (time.perf_counter() - start) / REQUESTS
    requests = config.rollout.prompts_per_step / config.rollout.prompts_per_request
    return {"verify_s": verify_s, "learn_s": _learning_s(config, prepared, groups) / requests}


class _Replay:
    """Gives the same groups for every step: a learner that never waits."""

    def __init__(self, groups: list[ScoredGroup]) -> None:
        self._groups = groups

    def publish(self, version: int, model: PreTrainedModel) -> None:
        """Nobody decodes with them."""

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """There is nothing to wait for."""

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """Groups in the guise of those asked for."""
        return [
            replace(group, index=index, version=version) for index, group in zip(indices, self._groups, strict=False)
        ]


def _learning_s(config: TrainConfig, prepared: Preparation, groups: list[ScoredGroup]) -> float:
    """The update of one of quickstart's steps, every group of it used."""
    import torch

    from bgrpo.learning.trainer import BGRPOTrainer

    threads = torch.get_num_threads()
    torch.set_num_threads(config.learner.threads)
    rollout = config.rollout.model_copy(update={"skip_uninformative": False})
    short = config.model_copy(update={"steps": LEARNING_STEPS, "rollout": rollout})
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bgrpo-scaling-") as folder:
        BGRPOTrainer(
            short,
            prepared.policy.model,
            prepared.policy.tokenizer,
            _Replay(groups),
            len(prepared.splits.train),
            Path(folder),
            on_step=lambda metrics: seconds.append(metrics["seconds/learn"]),
        ).run()
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
        load_s=_load_s(model),
        weight_bytes=float(flatten_parameters(model).nbytes),
    )
    return large_costs, [held for _, held in published]
