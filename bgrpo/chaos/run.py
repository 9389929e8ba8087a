"""A run that is disturbed on purpose, next to one that is not. See :mod:`bgrpo.chaos` for what decides and judges."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from bgrpo.chaos.comparison import compare_runs
from bgrpo.chaos.faults import DRIVER_FAULTS, Fault, FaultKind, Schedule
from bgrpo.chaos.hands import Hands, Victim
from bgrpo.chaos.memory import MemorySample, memory_trends
from bgrpo.chaos.recovery import POOLS, Recoveries, Sight
from bgrpo.chaos.report import ChaosReport
from bgrpo.chaos.view import TITLES, Driver, RunView
from bgrpo.config import TrainConfig, build_config, dump_config
from bgrpo.distributed.session.session import ray_session, training_demand
from bgrpo.errors import UserError
from bgrpo.runs.folder import RunFolder

POLL_S = 0.25
MEMORY_S = 5.0
PATIENCE_S = 120.0  # a fault waits so long for somebody to hit: all may be starting again after the one before
NO_STEP_S = 900.0
GONE_S = 60.0
PACE_STEPS, PACE_WARM_UP = 12, 4
STEPS_LOST = 0.5
"""Part of the time that recoveries take at the default gaps; only for :attr:`ChaosPlan.minutes`."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What to do.

    Attributes:
        config: of both runs; ``run.dir`` and ``run.name`` say where all of it goes.
        schedule: of the faults.
        minutes: about how long the disturbed run is to last: decides ``steps``; None: ``config.steps`` as it is.
        undisturbed: a finished run of the same configuration; None makes one.
    """

    config: TrainConfig
    schedule: Schedule
    minutes: float | None
    undisturbed: RunFolder | None


def run_chaos(plan: ChaosPlan, folder: Path, say: Say) -> ChaosReport:
    """Make the undisturbed run, unless it is given, then the disturbed one, and compare.

    Args:
        plan: what to do.
        folder: exists; gets the runs ``undisturbed`` and ``disturbed`` and their logs.
        say: told what goes on.

    Raises:
        UserError: the cluster is too small, or the undisturbed run fails.
    """
    config = plan.config
    with ray_session(training_demand(config)):
        if plan.minutes is not None:
            config = _with(config, steps=_steps_for(plan.minutes, _undisturbed_run(config, folder, "pace", say)))
            say(f"{config.steps} steps make about {plan.minutes:g} minutes with faults")
        calm = plan.undisturbed
        memory: list[MemorySample] = []
        if calm is None:
            calm = _undisturbed_run(config, folder, "undisturbed", say, memory)
        return _Disturbance(plan, config, folder, say, memory).go(calm)


def _undisturbed_run(
    config: TrainConfig, folder: Path, name: str, say: Say, memory: list[MemorySample] | None = None
) -> RunFolder:
    """A run without faults, whose processes' memory joins ``memory``; ``pace`` is a short one, only to be timed."""
    if name == "pace":
        config = _with(config, steps=PACE_STEPS, evaluation=config.evaluation.model_copy(update={"final": False}))
    driver = _driver(config, folder, name)
    hands = Hands()
    view = RunView(folder / name, driver, hands)
    say(f"run {name}: {config.steps} steps in {folder / name}")
    driver.start()
    sampled = time.monotonic()
    try:
        while driver.poll() is None:
            time.sleep(POLL_S)
            if memory is not None and time.monotonic() - sampled > MEMORY_S:
                sampled = time.monotonic()
                memory.extend(view.memory(view.status(), sampled))
    finally:
        driver.end()
        hands.close()
    if driver.poll() != 0:
        raise UserError(f"run {name} ended with status {driver.poll()} without any fault:\n{driver.last_words()}")
    return RunFolder(folder / name)


def _steps_for(minutes: float, pace: RunFolder) -> int:
    """How many steps a disturbed run makes in so many minutes."""
    step_s = median(float(line["seconds/total"]) for line in pace.metrics()[PACE_WARM_UP:])
    return max(PACE_STEPS, round(60 * minutes * (1 - STEPS_LOST) / step_s))


def _driver(config: TrainConfig, folder: Path, name: str) -> Driver:
    """The driver of a run ``folder/name``, not started yet."""
    run = config.run.model_copy(update={"dir": str(folder), "name": name})
    file = folder / f"{name}.yaml"
    dump_config(_with(config, run=run), file)
    return Driver(folder / name, file, folder / f"{name}.log")


def _with(config: TrainConfig, **changes: Any) -> TrainConfig:
    return build_config(TrainConfig, config.model_copy(update=changes).model_dump(mode="json"), "chaos")


class _Disturbance:
    """The disturbed run, its faults, and what is seen of it; ``memory`` is of the undisturbed run."""

    def __init__(
        self, plan: ChaosPlan, config: TrainConfig, folder: Path, say: Say, memory: list[MemorySample]
    ) -> None:
        self._plan = plan
        self._config = config
        self._run = RunFolder(folder / "disturbed")
        self._say = say
        self._hands = Hands()
        self._driver = _driver(config, folder, "disturbed")
        self._view = RunView(self._run.path, self._driver, self._hands)
        self._recoveries = Recoveries()
        self._memory = memory
        self._hit: list[tuple[str, str, int, float]] = []  # what, node, process, its start
        self._fault = plan.schedule.fault(0)
        self._due: float | None = None
        self._ending = False  # a fault is ending the driver
        self._start = time.monotonic()

    def go(self, undisturbed: RunFolder) -> ChaosReport:
        """Run to the end, judge."""
        shortest, longest = self._plan.schedule.every
        self._say(f"run disturbed: a fault every {shortest:g} to {longest:g} s")
        try:
            self._driver.start()
            failure = self._watch()
            seconds = self._now()
        finally:
            self._driver.end()
            left_behind = self._end_leftovers()
            self._hands.close()
        finished = failure == ""
        return ChaosReport(
            seed=self._plan.schedule.seed,
            finished=finished,
            failure=failure,
            checkpoint_every=self._config.checkpoint.every,
            steps=self._config.steps,
            seconds=seconds,
            undisturbed_seconds=_duration(undisturbed),
            faults=self._recoveries.records,
            comparison=compare_runs(undisturbed, self._run) if finished else None,
            memory=memory_trends(self._memory),
            left_behind=left_behind,
        )

    def _now(self) -> float:
        """Seconds since the schedule began."""
        return time.monotonic() - self._start

    def _watch(self) -> str:
        """Look, disturb, start the driver again, until the run is over; why it failed, or ""."""
        best, moved, sampled = 0, time.monotonic(), 0.0
        while True:
            time.sleep(POLL_S)
            if (ended := self._driver.poll()) is not None:
                self._recoveries.driver_ended(ended, self._now())
                if ended == 0:
                    return ""
                if not self._ending:
                    return f"its driver ended with status {ended}:\n{self._driver.last_words()}"
                self._ending = False
                self._driver.start()
            status = self._view.status()
            sight = self._view.sight(status)
            self._recoveries.observe(sight, self._now())
            self._disturb(sight, status)
            if time.monotonic() - sampled > MEMORY_S:
                sampled = time.monotonic()
                self._memory.extend(self._view.memory(status, sampled))
            if sight.last_step > best:
                best, moved = sight.last_step, time.monotonic()
            if time.monotonic() - moved > NO_STEP_S:
                return f"no step after step {best} for {NO_STEP_S:g} s:\n{self._driver.last_words()}"

    def _disturb(self, sight: Sight, status: dict[str, Any] | None) -> None:
        """Inject the fault that is due, if one is."""
        fault = self._fault
        if fault is None or sight.last_step == 0:
            return
        if self._due is None:
            self._start, self._due = time.monotonic(), fault.gap_s
        if self._now() < self._due:
            return
        if (reason := self._inject(fault, sight, status)) is not None:
            if self._now() < self._due + PATIENCE_S:
                return
            self._recoveries.skip(fault, self._now(), reason)
        record = self._recoveries.records[-1]
        self._say(f"{record.at:6.1f} s  {fault.kind}: {record.victim or f'skipped, {reason}'}")
        self._fault = self._plan.schedule.fault(fault.index + 1)
        self._due = self._now() + (0.0 if self._fault is None else self._fault.gap_s)

    def _inject(self, fault: Fault, sight: Sight, status: dict[str, Any] | None) -> str | None:
        """Do it; else say why not."""
        if fault.kind in DRIVER_FAULTS:
            return self._end_driver(fault, sight)
        if fault.kind == FaultKind.REMOVE_NODE:
            return self._remove_node(fault, sight, status)
        targets = self._targets(fault.kind, status)
        if not targets:
            return "the run is starting, no such process is up"
        words, number, victim = targets[fault.victim_of(len(targets))]
        stopped = fault.kind == FaultKind.STOP_ROLLOUT
        at = self._now()
        try:
            reason, hit = self._hands.ask(victim.node, "signal", victim, signal.SIGSTOP if stopped else signal.SIGKILL)
        except RayError as error:
            return f"its node does not answer: {type(error).__name__}"
        if hit is None:
            return str(reason)
        words = f"{words} (pid {hit[0]})"
        self._hit.append((words, victim.node, *hit))
        self._recoveries.inject(fault, at, words, sight, number)
        return None

    def _targets(self, kind: FaultKind, status: dict[str, Any] | None) -> list[tuple[str, int | None, Victim]]:
        """What this kind may hit: in words, the pool's number of it, the process."""
        if kind == FaultKind.KILL_LEARNER:
            return [
                (f"learner {place.rank}", None, Victim(place.pid, place.node, TITLES["learner"], started=place.started))
                for place in self._view.learners()
            ]
        if kind == FaultKind.KILL_SERVICE:
            place = None if status is None else status["service"]
            return [] if place is None else [("service", None, Victim(place["pid"], place["node"], TITLES["service"]))]
        pool = POOLS.get(kind, "verifier")
        found = self._view.pooled(pool, status)
        if kind == FaultKind.KILL_CHECK:
            return [
                (f"check of verifier {number}", None, Victim(victim.pid, victim.node, victim.title, child=True))
                for number, victim in found
            ]
        return [(f"{pool} {number}", number, victim) for number, victim in found]

    def _end_driver(self, fault: Fault, sight: Sight) -> str | None:
        pid = self._driver.pid
        if pid is None or self._ending or len(self._view.learners()) < self._config.learner.workers:
            return "the driver is starting or ending"
        self._ending = True
        self._recoveries.inject(fault, self._now(), f"driver (pid {pid})", sight)
        self._driver.signal(signal.SIGKILL if fault.kind == FaultKind.KILL_DRIVER else signal.SIGTERM)
        return None

    def _remove_node(self, fault: Fault, sight: Sight, status: dict[str, Any] | None) -> str | None:
        places = [(number, victim.node) for number, victim in self._view.pooled("rollout", status)]
        kept = {place.node for place in self._view.learners()} | {ray.get_runtime_context().get_node_id()}
        kept |= {node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
        kept |= set() if status is None else {status["service"]["node"]}
        removable = sorted({node for _, node in places} - kept)
        if not removable:
            return "no node has rollout actors but neither a learner, the service, nor the head"
        node = random.Random(fault.pick).choice(removable)
        actor = next(number for number, home in places if home == node)
        at = self._now()
        try:
            reason = self._hands.ask(node, "kill_raylet")
        except RayActorError:  # it took the hand with it, before that could answer
            reason = None
        except RayError as error:
            reason = f"its node does not answer: {type(error).__name__}"
        if reason is None:
            self._recoveries.inject(fault, at, f"node {node[:8]}", sight, actor)
        return reason

    def _end_leftovers(self) -> list[str]:
        """Wait until every process that was hit is gone, and kill what is not."""
        deadline = time.monotonic() + GONE_S
        left, waiting = [], list(self._hit)
        while waiting:
            late = time.monotonic() > deadline
            still = []
            for what, node, pid, started in waiting:
                try:
                    there = self._hands.ask(node, "end_leftover" if late else "is_there", pid, started)
                except RayError:  # gone with its node
                    there = False
                if there:
                    still.append((what, node, pid, started))
            if late:
                left = [what for what, *_ in still]
                break
            waiting = still
            time.sleep(POLL_S)
        return left


def _duration(run: RunFolder) -> float:
    """Seconds from a run's first step to its last."""
    lines = run.metrics()
    return float(lines[-1]["time"] - lines[0]["time"])
