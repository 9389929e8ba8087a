"""The table of metrics, what feeds it, the dashboard that shows it, and what Prometheus would really get."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import ray
import torch
from learner_cases import scored

from bgrpo.config import RewardSection, TrainConfig
from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import ActorState, PoolLimits
from bgrpo.distributed.rollout import service_metrics
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.rollout.service_metrics import ServiceMetrics, WeightSync, pool_samples
from bgrpo.distributed.train.learner_loop import _StepReporter
from bgrpo.distributed.train.learner_watch import LearnerWatch
from bgrpo.distributed.watch.prometheus import METRICS, RUN_TAG, MetricsRecorder, Sample, step_samples
from bgrpo.distributed.watch.run_log import RunLog
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.batch import LearningStep
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.learning.step_metrics import LearnerMeter, StepClock, rollout_metrics
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.runs.budget import Spent
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "dashboards" / "bgrpo.json"
TABLE = {metric.name: metric for metric in METRICS}
WAIT_S = 200.0


def check(samples: list[Sample]) -> None:
    """Every sample is of a metric in the table, has exactly its tags, and stands for itself."""
    for sample in samples:
        assert set(sample.tags) == set(TABLE[sample.metric].tags), sample
        assert all(isinstance(value, str) for value in sample.tags.values())
    series = [(sample.metric, *sample.tags.values()) for sample in samples]
    assert len(series) == len(set(series))


def value(samples: list[Sample], name: str, /, **tags: str) -> float:
    (found,) = [sample.value for sample in samples if sample.metric == name and sample.tags == tags]
    return found


# --- the table ---


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len(TABLE) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"bgrpo_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.boundaries) == (metric.kind == "histogram")
        assert list(metric.boundaries) == sorted(set(metric.boundaries))
        assert metric.help and not metric.help.endswith(".")
        assert not {RUN_TAG, "le"} & set(metric.tags)


# --- a training step ---


def group(index: int, outcomes: list[str]) -> ScoredGroup:
    completions = [Completion([5] * length, [-0.5] * length, True) for length in (2, 3)]
    return scored(index, [1, 2], completions, outcomes, version=3)


def real_step(mode: str) -> dict[str, float]:
    """Metrics as a training step computes them."""
    groups = [group(0, ["correct", "wrong"]), group(1, ["wrong", "timeout"])]
    meter = LearnerMeter()
    logged = {"kl": [0.02], "entropy": [0.4], "clip_ratio/region_mean": [0.1]}
    meter.add_micro_batch(logged, 10, torch.tensor(0.5))
    meter.end_optimizer_step(1.5)
    return {
        "step": 4.0,
        **rollout_metrics(LearningStep(groups, []), 4, mode, RewardSection()),
        **meter.result(),
        "learning_rate": 1e-4,
        **Spent(steps=4, completions=4).metrics(),
        "validation/beam@10": 0.5,
        **StepClock().restart(4),
    }


@pytest.mark.parametrize("mode", ["beam", "sample"])
def test_every_metric_of_a_step_is_exported(mode: str) -> None:
    metrics = real_step(mode)
    samples = step_samples(metrics)
    check(samples)
    assert len(samples) == len(metrics) - 1, "all but used/steps, which is step"
    assert value(samples, "bgrpo_step") == 4.0
    assert value(samples, "bgrpo_reward_mean") == 1 / 3, "what timed out has no reward"
    assert value(samples, "bgrpo_kl_nats") == pytest.approx(0.02)
    assert value(samples, "bgrpo_gradient_norm", statistic="max") == 1.5
    assert value(samples, "bgrpo_staleness_versions", statistic="max") == 1.0
    assert value(samples, "bgrpo_step_completions", outcome="wrong") == 2.0
    assert value(samples, "bgrpo_validation_score", metric="beam@10") == 0.5
    assert value(samples, "bgrpo_step_part_seconds", part="learn") == metrics["seconds/learn"]
    assert value(samples, "bgrpo_step_seconds") == metrics["seconds/total"]


def test_names_that_are_unknown_are_left_out() -> None:
    assert step_samples({"something": 1.0, "used/steps": 3.0, "outcome": 1.0, "outcome/": 1.0, "new/x": 2.0}) == []


def test_every_metric_of_the_table_is_fed_by_somebody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fed: list[Sample] = []
    monkeypatch.setattr(MetricsRecorder, "record", lambda self, samples: fed.extend(samples))
    monkeypatch.setattr(MetricsRecorder, "refresh_forever", lambda self: None)
    log = RunLog("a run", "learner 0")
    learner = _StepReporter(TrainConfig(), log, LearnerWatch(tmp_path, 0, 60.0), RunFolder(tmp_path))
    learner(real_step("beam"))
    learner(real_step("sample"))
    assert log.step == 4 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    metrics, state = ServiceMetrics("a run"), pool()
    metrics.decoded(0.3)
    metrics.scored([group(0, ["correct", "wrong"])])
    metrics.published("v1")
    for actor in (0, 2, 3):
        metrics.loaded(actor, "v1", state)
    metrics.sample({"rollout": SimpleNamespace(state=state, answered={0: 3})}, 10.0)  # type: ignore[dict-item]
    assert {sample.metric for sample in fed} == TABLE.keys()


def test_other_learners_than_the_first_only_keep_their_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(MetricsRecorder, "record", lambda self, samples: pytest.fail("recorded twice"))
    log = RunLog("a run", "learner 1")
    _StepReporter(TrainConfig(), log, LearnerWatch(tmp_path, 1, 60.0), None)(real_step("beam"))
    assert log.step == 4


# --- the service ---


def pool() -> PoolState:
    """Six places: one works, one has died twice, one loads, one is idle, one starts, one is pending; one waits."""
    state = PoolState(6, PoolLimits(backoff_s=100.0))
    state.start(0.0)
    for number in range(5):
        state.placed(number, 0.5)
    for number in range(4):
        state.spawned(number, 1.0)
    state.submit(0, None, 10.0, 2.0)
    state.died(1, "killed", 3.0)
    state.tick(3.0)
    state.died(6, "killed", 4.0)
    state.submit(1, "weights", 10.0, 5.0)
    return state


def test_a_pool_is_told_by_state_queue_and_restarts() -> None:
    samples = pool_samples("rollout", pool(), {0: 2, 2: 5}, now=7.0)
    check(samples)
    states = {name: value(samples, "bgrpo_actors", pool="rollout", state=name) for name in (*ActorState, "dead")}
    assert states == {"pending": 1, "starting": 1, "loading": 1, "idle": 1, "busy": 1, "dead": 1}
    assert value(samples, "bgrpo_oldest_wait_seconds", pool="rollout") == 5.0
    assert value(samples, "bgrpo_queue_requests", pool="rollout") == 1
    assert value(samples, "bgrpo_requests_total", pool="rollout", actor="2") == 5
    assert value(samples, "bgrpo_actor_restarts_total", pool="rollout") == 1
    assert value(samples, "bgrpo_pool_gave_up", pool="rollout") == 0


def test_a_pool_that_gave_up_says_so() -> None:
    state = pool()
    state.abandon("it is enough", 8.0)
    assert value(pool_samples("verifier", state, {}, 8.0), "bgrpo_pool_gave_up", pool="verifier") == 1


def test_weight_sync_ends_when_all_that_are_up_have_held_the_weights() -> None:
    sync = WeightSync()
    sync.published("v1", 10.0)
    assert sync.loaded(0, "v0", [0, 1], 10.5) is None, "older weights"
    assert sync.loaded(0, "v1", [0, 1], 11.0) is None
    assert sync.loaded(1, "v1", [0, 1], 12.5) == 2.5
    assert sync.loaded(0, "v1", [0, 1], 13.0) is None, "loaded again after other weights"


def test_weight_sync_follows_the_newest_publication_and_replaced_actors() -> None:
    sync = WeightSync()
    sync.published("v1", 10.0)
    assert sync.loaded(0, "v1", [0, 1], 11.0) is None
    sync.published("v2", 12.0)
    assert sync.loaded(1, "v1", [0, 1], 13.0) is None
    assert sync.loaded(1, "v2", [0, 1], 14.0) is None
    assert sync.loaded(2, "v2", [1, 2], 15.0) == 3.0, "actor 0 died, 2 is in its place"


def test_pools_are_sampled_once_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def note(name: str, state: None, answered: dict[int, int], now: float) -> list[Sample]:
        asked.append(now)
        return []

    monkeypatch.setattr(service_metrics, "pool_samples", note)
    metrics = ServiceMetrics("a run")
    for tenth in range(35):
        metrics.sample({"rollout": SimpleNamespace(state=None, answered={})}, tenth / 10)  # type: ignore[dict-item]
    assert asked == [0.0, 1.0, 2.0, 3.0]


# --- recording ---


class Recorded:
    """Stands in for one of Ray's counters; keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, dict[str, str]]] = []

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {RUN_TAG: "a run"}

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        self.calls.append((value, tags))


def test_a_total_counts_by_its_difference_for_each_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Recorded()
    monkeypatch.setattr("bgrpo.distributed.watch.prometheus.Counter", lambda *_definition: counter)
    recorder = MetricsRecorder("a run")
    for total, outcome in ((3, "correct"), (0, "wrong"), (3, "correct"), (2, "wrong"), (7, "correct")):
        recorder.record([Sample("bgrpo_completions_total", total, {"outcome": outcome})])
    assert [(more, tags["outcome"]) for more, tags in counter.calls] == [(3, "correct"), (2, "wrong"), (4, "correct")]


def test_recording_without_a_ray_agent_does_nothing() -> None:
    """Also what Prometheus would not like: it must not end a run."""
    recorder = MetricsRecorder("a run")
    for number in (1.0, math.nan, math.inf, -1.0):
        recorder.record([one_sample(metric.name, number) for metric in METRICS])


def one_sample(name: str, number: float) -> Sample:
    return Sample(name, number, {tag: f"some {tag}" for tag in TABLE[name].tags})


# --- the dashboard ---

SERIES = re.compile(r"ray_(bgrpo_[a-z0-9_]+?)(_bucket|_sum|_count)?\{([^}]*)\}")


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text("utf-8"))


def shown(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in tree["panels"] if panel["type"] != "row"]


def complaints(expression: str) -> list[str]:
    """What an expression gets wrong about the table."""
    found = []
    series = SERIES.findall(expression)
    if len(series) != expression.count("bgrpo_"):
        found.append("a series without a selector, or of another's name")
    labels = {RUN_TAG, "le"}
    for name, suffix, selector in series:
        metric = TABLE.get(name)
        if metric is None or (metric.kind == "histogram") != bool(suffix):
            found.append(f"no series ray_{name}{suffix}")
            continue
        labels |= set(metric.tags)
        matchers = re.findall(r'([a-z_]+)(?:=~|!=|=)"[^"]*"', selector)
        if 'run=~"$run"' not in selector or not set(matchers) <= {RUN_TAG, *metric.tags}:
            found.append(f"selector {selector}")
        if metric.kind == "gauge" and re.search(rf"rate\(ray_{name}\b", expression):
            found.append(f"rate of the gauge {name}")
    for keys in re.findall(r"by \(([^)]*)\)", expression):
        if not set(keys.replace(" ", "").split(",")) <= labels:
            found.append(f"by ({keys})")
    if expression.count("(") != expression.count(")"):
        found.append("parentheses")
    return found


@pytest.mark.parametrize(
    "expression",
    [
        'sum(ray_bgrpo_nothing{run=~"$run"})',
        "sum(ray_bgrpo_step)",
        'max by (pool) (ray_bgrpo_step{run=~"$run"})',
        'ray_bgrpo_step{run=~"$run", pool="x"}',
        'ray_bgrpo_decode_seconds{run=~"$run"}',
        'rate(ray_bgrpo_step{run=~"$run"}[1m])',
        "ray_bgrpo_step{}",
    ],
)
def test_wrong_expressions_are_found(expression: str) -> None:
    assert complaints(expression)


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    tree = dashboard()
    expressions = [target["expr"] for panel in shown(tree) for target in panel["targets"]]
    assert {expression: complaints(expression) for expression in expressions if complaints(expression)} == {}
    seen = {name for expression in expressions for name, _, _ in SERIES.findall(expression)}
    assert seen == TABLE.keys()


def test_the_dashboard_works_with_any_data_source_and_run() -> None:
    tree = dashboard()
    assert tree["uid"] == "bgrpo" and "__inputs" not in tree and tree.get("id") is None
    variables = {variable["name"]: variable for variable in tree["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    (name,) = re.findall(r"label_values\(ray_(bgrpo_[a-z_]+), run\)", variables["run"]["query"]["query"])
    assert name in TABLE
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in shown(tree):
        assert all(part["datasource"] == source for part in (panel, *panel["targets"])), panel["title"]


def test_the_panels_are_grouped_have_units_and_do_not_overlap() -> None:
    tree = dashboard()
    rows = [panel["title"] for panel in tree["panels"] if panel["type"] == "row"]
    assert rows == ["Throughput", "Learning", "Pools", "Failures"]
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in tree["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + line) for column in range(place["w"]) for line in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in shown(tree):
        names = {name for target in panel["targets"] for name, _, _ in SERIES.findall(target["expr"])}
        unit = panel["fieldConfig"]["defaults"]["unit"]
        rated = any("rate(" in target["expr"] for target in panel["targets"])
        if all(name.endswith("_seconds") for name in names):
            assert unit == "s", panel["title"]
        elif all(name.endswith("_ratio") for name in names):
            assert unit == "percentunit", panel["title"]
        elif rated:
            assert unit in ("cps", "reqps"), panel["title"]
        assert panel["description"]


# --- what Prometheus gets ---


def scrape() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every series of ours at this node's agent: name -> labels of ours -> value."""
    from prometheus_client.parser import text_string_to_metric_families

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=240) as answer:
        text = answer.read().decode()
    ours = {RUN_TAG, "le", *(tag for metric in METRICS for tag in metric.tags)}
    series: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_bgrpo_"):
                labels = tuple(sorted((key, tag) for key, tag in sample.labels.items() if key in ours))
                series.setdefault(sample.name, {})[labels] = sample.value
    return series


def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_metric_is_exposed_under_its_name_with_its_tags() -> None:
    recorder = MetricsRecorder("table")
    recorder.record([one_sample(metric.name, 0.5) for metric in METRICS])
    recorder.refresh_forever()

    def present(metric: Any, series: dict[str, dict[tuple[tuple[str, str], ...], float]]) -> bool:
        labels = {RUN_TAG: "table", **one_sample(metric.name, 0.5).tags}
        name = metric.exposed_name + ("_count" if metric.kind == "histogram" else "")
        return series.get(name, {}).get(tuple(sorted(labels.items()))) == (1 if metric.kind == "histogram" else 0.5)

    until(lambda: all(present(metric, scrape()) for metric in METRICS[:1]))
    time.sleep(3.5)  # more than two of the session's report intervals, after which Ray forgets gauges
    series = scrape()
    assert [metric.name for metric in METRICS if not present(metric, series)] == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_service_exposes_its_rollouts_and_pools(tmp_path: Path) -> None:
    tokenizer, texts = build_tokenizer(0, 0), [f"+ a P {i} ⁇" for i in range(4)]
    model = build_policy(tokenizer, layers=1, heads=2, width=16, context=32, seed=0)
    save_policy(model, tokenizer, tmp_path / "policy")
    config = TrainConfig.model_validate(
        {
            "policy": {"path": str(tmp_path / "policy")},
            "rollout": {"group_size": 4, "max_new_tokens": 4, "prompts_per_request": 2, "actors": 1},
            "reward": {"function": "reward_functions:length"},
        }
    )
    numbered = list(enumerate(map(Problem, texts)))
    service = start_service(config, decode_settings(config, tokenizer), len(tokenizer), run="exposed")
    ray.get(service.ready.remote(WAIT_S), timeout=WAIT_S + 10)
    ray.get(service.publish.remote(0, [ray.put(flatten_parameters(model))]), timeout=WAIT_S)
    (groups,) = ray.get(service.collect.remote(0, 0, 0, numbered, WAIT_S), timeout=WAIT_S + 10)
    groups = ray.get(groups, timeout=WAIT_S)
    expected = sum(len(completion.tokens) for group in groups for completion in group.completions)

    def labelled(series: dict[str, dict[tuple[tuple[str, str], ...], float]], name: str) -> dict[str, float]:
        """Values of the run's series by their tags other than the run."""
        return {
            " ".join(tag for key, tag in labels if key != RUN_TAG): number
            for labels, number in series.get(f"ray_{name}", {}).items()
            if (RUN_TAG, "exposed") in labels
        }

    until(lambda: labelled(scrape(), "bgrpo_completion_tokens_total") == {"": expected})
    until(lambda: labelled(scrape(), "bgrpo_actors").get("rollout idle") == 1)
    until(lambda: "" in labelled(scrape(), "bgrpo_weight_sync_seconds"))
    series = scrape()
    assert sum(labelled(series, "bgrpo_completions_total").values()) == 16
    assert labelled(series, "bgrpo_decode_seconds_count") == {"": 2}
    assert sum(n for tags, n in labelled(series, "bgrpo_requests_total").items() if tags.endswith("rollout")) == 2
    assert labelled(series, "bgrpo_pool_gave_up") == {"rollout": 0, "verifier": 0}
    ray.kill(service)
