"""The metrics that Prometheus gets through Ray: one table of all of them, and what a training step says to them.

Ray's agent on each node exposes what the processes there record, under the name here with ``ray_`` before it. A
process without an agent records into nothing. Tags have few values, so that a long run does not fill Prometheus;
``actor`` is the exception, it has one per actor that ever lived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ray.util.metrics import Counter, Gauge, Histogram

RUN_TAG = "run"
"""Every metric has it: the name of the run."""

REFRESH_S = 1.0
DECODE_BOUNDARIES_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table.

    Attributes:
        name: with its unit; counters end in ``_total``.
        kind: a counter's samples are totals since the process began.
        help: what it means.
        tags: besides :data:`RUN_TAG`.
        boundaries: of a histogram's buckets.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exposed_name(self) -> str:
        """What Prometheus calls it."""
        return f"ray_{self.name}"


METRICS: tuple[Metric, ...] = (
    # throughput
    Metric("bgrpo_completions_total", "counter", "Completions decoded and checked, evaluations too", ("outcome",)),
    Metric("bgrpo_completion_tokens_total", "counter", "Tokens of these completions"),
    Metric("bgrpo_rollouts_per_second", "gauge", "Completions per second of the last step's rollouts"),
    Metric("bgrpo_decode_seconds", "histogram", "Decoding of one request", boundaries=DECODE_BOUNDARIES_S),
    Metric("bgrpo_weight_sync_seconds", "gauge", "From publishing weights until all rollout actors held them"),
    Metric("bgrpo_step_seconds", "gauge", "The last training step, all of it"),
    Metric("bgrpo_step_part_seconds", "gauge", "Parts of that step; learn includes optimizer", ("part",)),
    Metric("bgrpo_used_completions", "gauge", "Completions for learning since the run began"),
    Metric("bgrpo_used_tokens", "gauge", "Tokens of these completions"),
    Metric("bgrpo_used_gradient_steps", "gauge", "Optimizer steps since the run began"),
    Metric("bgrpo_used_seconds", "gauge", "Rollouts, weights and updates since the run began"),
    # learning
    Metric("bgrpo_step", "gauge", "Training steps done"),
    Metric("bgrpo_reward_mean", "gauge", "Mean reward of the step's completions"),
    Metric("bgrpo_reward_std", "gauge", "Standard deviation of the rewards within groups, mean over groups"),
    Metric("bgrpo_solved_groups_ratio", "gauge", "Fraction of groups with a correct completion"),
    Metric("bgrpo_informative_groups_ratio", "gauge", "Fraction of groups whose rewards differ"),
    Metric("bgrpo_advantage_max", "gauge", "Largest absolute advantage that is learned from"),
    Metric("bgrpo_top1_accuracy_ratio", "gauge", "Fraction of groups whose top beam is correct"),
    Metric("bgrpo_duplicates_ratio", "gauge", "Fraction of samples equal to an earlier one of their group"),
    Metric("bgrpo_groups_drawn", "gauge", "Groups drawn for the step"),
    Metric("bgrpo_groups_used", "gauge", "Groups that the step's update used"),
    Metric("bgrpo_completion_length_tokens", "gauge", "Mean length of the step's completions"),
    Metric("bgrpo_step_completions", "gauge", "The step's completions", ("outcome",)),
    Metric("bgrpo_staleness_versions", "gauge", "Age of the weights that decoded the step", ("statistic",)),
    Metric("bgrpo_kl_nats", "gauge", "KL from the reference policy, mean over completion tokens"),
    Metric("bgrpo_entropy_nats", "gauge", "Entropy of the policy, mean over completion tokens"),
    Metric("bgrpo_clipped_ratio", "gauge", "Fraction of completion tokens whose probability ratio was clipped"),
    Metric("bgrpo_gradient_norm", "gauge", "Gradient norm of the step's updates before clipping", ("statistic",)),
    Metric("bgrpo_learning_rate", "gauge", "Learning rate of the step's last update"),
    Metric("bgrpo_validation_score", "gauge", "Held-out metrics of the last validation", ("metric",)),
    # pools
    Metric("bgrpo_actors", "gauge", "Places of the pool by state; dead ones wait for a replacement", ("pool", "state")),
    Metric("bgrpo_pool_size", "gauge", "Actors that the pool asks for", ("pool",)),
    Metric("bgrpo_queue_requests", "gauge", "Requests that wait for an actor", ("pool",)),
    Metric("bgrpo_oldest_wait_seconds", "gauge", "Age of the oldest open request", ("pool",)),
    Metric("bgrpo_requests_total", "counter", "Answered requests", ("pool", "actor")),
    # failures
    Metric("bgrpo_actor_restarts_total", "counter", "Actors that replaced another", ("pool",)),
    Metric("bgrpo_garbage_replies_total", "counter", "Replies that could be no answers; cost an actor", ("pool",)),
    Metric("bgrpo_pool_gave_up", "gauge", "1 when the pool refuses every request: the run fails", ("pool",)),
    Metric("bgrpo_stalls_total", "counter", "Times the service said who waits for whom"),
    Metric("bgrpo_learner_starts_total", "counter", "Starts of learner 0: the first, and one after each loss"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric: what a gauge is, what a counter's total is, what a histogram observed."""

    metric: str
    value: float
    tags: dict[str, str] = field(default_factory=dict)


class MetricsRecorder:
    """Records samples of this process for Ray's agent on its node.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._metrics = {metric.name: metric for metric in METRICS}
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._totals: dict[tuple[str, ...], float] = {}
        self._gauges: dict[tuple[str, ...], Sample] = {}

    def record(self, samples: Iterable[Sample]) -> None:
        """Record each sample; a counter's total counts by how much it is more than the one before."""
        for sample in samples:
            instrument = self._instrument(sample.metric)
            key = (sample.metric, *sample.tags.values())
            if isinstance(instrument, Gauge):
                self._gauges[key] = sample
                instrument.set(sample.value, sample.tags)
            elif isinstance(instrument, Histogram):
                instrument.observe(sample.value, sample.tags)
            else:
                more = sample.value - self._totals.get(key, 0.0)
                if more > 0:  # Ray refuses to count nothing
                    instrument.inc(more, sample.tags)
                    self._totals[key] = sample.value

    def refresh(self) -> None:
        """Set every gauge again to what it is: Ray forgets one that was not set for two of its report intervals."""
        for sample in list(self._gauges.values()):
            gauge = self._instruments[sample.metric]
            if isinstance(gauge, Gauge):
                gauge.set(sample.value, sample.tags)

    def refresh_forever(self) -> None:
        """:meth:`refresh` every :data:`REFRESH_S` seconds in a thread, until the process ends."""

        def work() -> None:
            while True:
                time.sleep(REFRESH_S)
                self.refresh()

        threading.Thread(target=work, name="metrics", daemon=True).start()

    def _instrument(self, name: str) -> Counter | Gauge | Histogram:
        if name not in self._instruments:
            metric = self._metrics[name]
            keys = (RUN_TAG, *metric.tags)
            instrument: Counter | Gauge | Histogram
            if metric.kind == "histogram":
                instrument = Histogram(name, metric.help, list(metric.boundaries), keys)
            else:
                instrument = (Gauge if metric.kind == "gauge" else Counter)(name, metric.help, keys)
            instrument.set_default_tags({RUN_TAG: self._run})
            self._instruments[name] = instrument
        return self._instruments[name]


_STEP_METRICS: dict[str, tuple[str, dict[str, str]]] = {
    "step": ("bgrpo_step", {}),
    "rollouts_per_s": ("bgrpo_rollouts_per_second", {}),
    "seconds/total": ("bgrpo_step_seconds", {}),
    "used/completions": ("bgrpo_used_completions", {}),
    "used/tokens": ("bgrpo_used_tokens", {}),
    "used/gradient_steps": ("bgrpo_used_gradient_steps", {}),
    "used/seconds": ("bgrpo_used_seconds", {}),
    "reward_mean": ("bgrpo_reward_mean", {}),
    "reward_std": ("bgrpo_reward_std", {}),
    "solved_groups": ("bgrpo_solved_groups_ratio", {}),
    "informative_groups": ("bgrpo_informative_groups_ratio", {}),
    "advantage_max": ("bgrpo_advantage_max", {}),
    "top1_accuracy": ("bgrpo_top1_accuracy_ratio", {}),
    "duplicates": ("bgrpo_duplicates_ratio", {}),
    "groups_drawn": ("bgrpo_groups_drawn", {}),
    "groups_used": ("bgrpo_groups_used", {}),
    "completion_length": ("bgrpo_completion_length_tokens", {}),
    "staleness": ("bgrpo_staleness_versions", {"statistic": "max"}),
    "staleness_mean": ("bgrpo_staleness_versions", {"statistic": "mean"}),
    "kl": ("bgrpo_kl_nats", {}),
    "entropy": ("bgrpo_entropy_nats", {}),
    "clip_fraction": ("bgrpo_clipped_ratio", {}),
    "grad_norm": ("bgrpo_gradient_norm", {"statistic": "mean"}),
    "grad_norm_max": ("bgrpo_gradient_norm", {"statistic": "max"}),
    "learning_rate": ("bgrpo_learning_rate", {}),
}
"""A step's metric -> ours and its tags."""

_STEP_FAMILIES = {
    "outcome": ("bgrpo_step_completions", "outcome"),
    "seconds": ("bgrpo_step_part_seconds", "part"),
    "validation": ("bgrpo_validation_score", "metric"),
}
"""What stands before the slash of a step's metric -> ours, and the tag that what stands after it becomes."""


def step_samples(metrics: Mapping[str, float]) -> list[Sample]:
    """A training step's metrics (see :mod:`bgrpo.learning.step_metrics`) for Prometheus; other names are left out."""
    samples = []
    for name, value in metrics.items():
        family, _, member = name.partition("/")
        if name in _STEP_METRICS:
            metric, tags = _STEP_METRICS[name]
            samples.append(Sample(metric, float(value), tags))
        elif family in _STEP_FAMILIES and member:
            metric, tag = _STEP_FAMILIES[family]
            samples.append(Sample(metric, float(value), {tag: member}))
    return samples
