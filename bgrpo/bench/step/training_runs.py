"""Real training runs on a local Ray, and where their steps' time went."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import ray
from rich.console import Console

from bgrpo.bench.step.update_workload import LARGE, LARGE_SHAPE, endless_policy
from bgrpo.bench.turns import Turn, interleave, timed
from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.rollout.remote import ServiceRolloutSource, answer
from bgrpo.distributed.rollout.service import start_service
from bgrpo.distributed.session.ray_session import ray_session, training_demand
from bgrpo.distributed.train.training_run import run_training
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.runs.preparation import check_input

PARTS = ("rollout", "weights", "learn", "optimizer", "total")
RUNS = {"quickstart": 12, "19M": 4}
"""Configurations, and training steps of each run."""

LEARNERS = (1, 2)
OVERLAP_STEPS = 30
"""Training steps of each run that shows what ``rollout.max_staleness=1`` gains."""

WARM_UP = 2  # steps that are left out: processes and kernels start
_READY_S = 180.0
_TRACKED_STEPS = 100
_CHECK_ROUNDS = 40


def measure_runs(names: Sequence[str], on_run: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """One row per configuration and number of learners: medians over the steps of a run, in seconds.

    ``rollout`` is the time that the learner waited, checks included; ``learn`` is all its own work, ``optimizer`` the
    part of it that moves the weights. The last rows say what a step takes where decoding and learning overlap, what
    checking adds to decoding, and what tracking costs.

    Args:
        names: keys of :data:`RUNS`.
        on_run: called after each row.
    """
    with tempfile.TemporaryDirectory(prefix="bgrpo-bench-") as folder:
        configs = {name: _config(name, Path(folder)) for name in names}
        widest = max(configs.values(), key=lambda config: config.rollout.cpus_per_actor)
        rows: list[dict[str, Any]] = []
        with ray_session(training_demand(_changed(widest, "learner", workers=max(LEARNERS)))):
            for name, config in configs.items():
                for learners in LEARNERS:
                    rows.append({"run": name} | _measure_run(_changed(config, "learner", workers=learners)))
                    yield rows[-1]
                    on_run()
            config = next(iter(configs.values()))
            yield _measure_overlap(config) | {"run": names[0]}
            on_run()
            for actors in dict.fromkeys((config.rollout.actors, 1)):
                yield _measure_checks(config, actors) | {"run": names[0]}
                on_run()
        yield _measure_tracking(config, Path(folder), rows[0]["total"]) | {"run": names[0]}
        on_run()


def _config(name: str, folder: Path) -> TrainConfig:
    options = ["evaluation.final=false", f"checkpoint.every={10 * RUNS[name]}", f"steps={RUNS[name] + WARM_UP}"]
    options.append(f"run.dir={folder / 'runs'}")
    if name != "quickstart":
        tokenizer = load_policy("shipped").tokenizer
        policy = folder / "policy"
        save_policy(endless_policy(replace(LARGE_SHAPE, context=512), tokenizer), tokenizer, policy)
        problems = "{kind: single, degrees: [[4, 4]], coefficients: 5, leading: positive}"
        for part, problem_count in (("train", 200), ("validation", 20), ("test", 20)):
            options += [f"task.{part}.options={problems}", f"task.{part}.count={problem_count}"]
        options += [f"rollout.group_size={LARGE.size}", f"rollout.prompts_per_step={LARGE.groups}"]
        options += [f"rollout.max_new_tokens={LARGE.new_tokens}", "rollout.prompts_per_request=2"]
        options += ["rollout.skip_uninformative=false", f"policy.path={policy}"]
    return load_config(TrainConfig, "quickstart", options)


def _changed(config: TrainConfig, section: str, **values: object) -> TrainConfig:
    """The configuration with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _measure_run(config: TrainConfig) -> dict[str, Any]:
    result = run_training(config, console=Console(quiet=True))
    steps = result.folder.metrics()[WARM_UP:]
    parts = {part: median(step[f"seconds/{part}"] for step in steps) for part in PARTS}
    return {"part": "run", "learners": config.learner.workers, "steps": len(steps), **parts}


def _measure_overlap(config: TrainConfig) -> dict[str, Any]:
    """One rollout actor and one learner, a thread each: steps one after another, and with the next step decoded ahead.

    ``bound_s`` is what no overlap can beat: the longer one of decoding, which only the run without overlap shows, and
    the learner's own work in the run with overlap, weights included.
    """
    config = _changed(config, "learner", threads=1).model_copy(update={"steps": OVERLAP_STEPS + WARM_UP})
    one_by_one, ahead = (
        _measure_run(_changed(config, "rollout", actors=1, threads=1, max_staleness=staleness)) for staleness in (0, 1)
    )
    bound_s = max(one_by_one["rollout"], ahead["learn"] + ahead["weights"])
    return {
        "part": "overlap",
        "rollout_s": one_by_one["rollout"],
        "learn_s": one_by_one["learn"],
        "total_s": one_by_one["total"],
        "learn_ahead_s": ahead["learn"],
        "total_ahead_s": ahead["total"],
        "bound_s": bound_s,
        "ratio": ahead["total"] / bound_s,
    }


def unread(prompt: str, completion: str) -> float:
    """A reward function that calls every answer wrong, unread: what decoding costs without checks."""
    return 0.0


def _measure_checks(config: TrainConfig, actors: int) -> dict[str, Any]:
    """Seconds of one step's rollouts with the task's checks and without, in turns; ``ratio`` is the turns' median.

    Checks can hide behind decoding where the actors leave a core for them, and other requests still decode.
    """
    config = _changed(config, "rollout", actors=actors)
    without = _changed(config, "reward", kind="function", function=f"{__name__}:{unread.__name__}")
    prepared = check_input(config)
    configs = {"checked": config, "unchecked": without}
    settings, vocabulary = decode_settings(config, prepared.policy.tokenizer), prepared.policy.model.config.vocab_size
    problems = prepared.splits.train
    services = {name: start_service(each, settings, vocabulary) for name, each in configs.items()}
    indices = list(range(config.rollout.prompts_per_step))
    try:
        sources = {name: ServiceRolloutSource(service, config, problems) for name, service in services.items()}
        measured: dict[str, Callable[[], Turn]] = {}
        for name, source in sources.items():
            answer(services[name].ready.remote(_READY_S), _READY_S + 30)
            source.publish(0, prepared.policy.model)
            measured[name] = partial(_collect_turn, source, count(), indices)
        turns = interleave(measured, 1 + _CHECK_ROUNDS)
    finally:
        for service in services.values():
            ray.get(service.shutdown.remote(), timeout=30)
    checked, unchecked = ([turn.seconds for turn in turns[name][1:]] for name in configs)
    return {
        "part": "verification",
        "actors": actors,
        "checked_s": median(checked),
        "unchecked_s": median(unchecked),
        "ratio": median(with_ / without for with_, without in zip(checked, unchecked, strict=True)),
    }


def _collect_turn(source: ServiceRolloutSource, steps: Iterator[int], indices: list[int]) -> Turn:
    """The rollouts of one step, the next one each time."""
    return timed(lambda: source.collect(next(steps), 0, indices, draw=0))


def _measure_tracking(config: TrainConfig, folder: Path, step_s: float) -> dict[str, Any]:
    """Processor seconds of recording one step in the embedded store, and their share of a step."""
    tracker = Tracker.start(config.tracking, folder / "tracking", "bench", {})
    metrics = {f"metric_{number}": float(number) for number in range(32)}
    tracker.log(0, metrics)

    def track() -> None:
        for step in range(1, 1 + _TRACKED_STEPS):
            tracker.log(step, metrics)
        tracker.finish("FINISHED")

    seconds = timed(track).cpu_seconds / _TRACKED_STEPS
    return {"part": "tracking", "seconds_per_step": seconds, "share": seconds / step_s}
