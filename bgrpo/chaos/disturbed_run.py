"""A run that is disturbed on purpose, next to one that is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ray.exceptions import RayActorError, RayError

from bgrpo.chaos.chaos_report import ChaosReport
from bgrpo.chaos.faults import Missed, Victim, end_leftovers, hit
from bgrpo.chaos.memory_growth import MemorySample, memory_trends
from bgrpo.chaos.recovery import Recoveries, Sight
from bgrpo.chaos.run_comparison import compare_runs
from bgrpo.chaos.run_view import Driver, Hands, RunView, hit_own, kill_own_raylet
from bgrpo.chaos.schedule import Fault, Schedule
from bgrpo.config import TrainConfig, build_config, dump_config
from bgrpo.distributed.session.ray_session import ray_session, training_demand
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import RunFolder

POLL_S = 0.25
MEMORY_S = 5.0
PATIENCE_S = 120.0  # a fault waits so long for somebody to hit: all may be starting again after the one before
NO_STEP_S = 900.0
GONE_S = 60.0
PACE_STEPS, PACE_WARM_UP = 12, 4
STEPS_LOST = 0.5
"""Part of the time that recoveries take at the default gaps."""

Say = Callable[[str], None]


def run_chaos(
    config: TrainConfig, schedule: Schedule, minutes: float | None, calm: RunFolder | None, folder: Path, say: Say
) -> ChaosReport:
    """Make the undisturbed run, unless it is given, then the disturbed one, and compare.

    Args:
        config: of both runs.
        schedule: of the faults.
        minutes: about how long the disturbed run is to last: decides ``steps``; None: ``config.steps`` as it is.
        calm: a finished run of the same configuration; None makes one.
        folder: exists; gets the runs ``undisturbed`` and ``disturbed`` and their logs.
        say: told what goes on.

    Raises:
        UserError: the cluster is too small, or the undisturbed run fails.
    """
    memory: list[MemorySample] = []

    def run_undisturbed(name: str, config: TrainConfig) -> FollowedRun:
        say(f"run {name}: {config.steps} steps in {folder / name}")
        made = FollowedRun(config, folder, name, replace(schedule, length=0), say)
        if failure := made.go():
            raise UserError(f"run {name}, without any fault: {failure}")
        return made

    with ray_session(training_demand(config)):
        if minutes is not None:
            no_evaluation = config.evaluation.model_copy(update={"final": False})
            pace = run_undisturbed("pace", _with(config, steps=PACE_STEPS, evaluation=no_evaluation))
            config = _with(config, steps=steps_for(minutes, pace.run))
            say(f"{config.steps} steps make about {minutes:g} minutes with faults")
        if calm is None:
            made = run_undisturbed("undisturbed", config)
            calm, memory = made.run, made.memory
        shortest, longest = schedule.every
        say(f"run disturbed: a fault every {shortest:g} to {longest:g} s")
        disturbed = FollowedRun(config, folder, "disturbed", schedule, say)
        failure = disturbed.go()
    steps = calm.metrics()
    return ChaosReport(
        seed=schedule.seed,
        finished=failure == "",
        failure=failure,
        checkpoint_every=config.checkpoint.every,
        steps=config.steps,
        seconds=disturbed.seconds,
        undisturbed_seconds=float(steps[-1]["time"] - steps[0]["time"]),
        faults=disturbed.recoveries.records,
        comparison=compare_runs(calm, disturbed.run) if failure == "" else None,
        memory=memory_trends([*memory, *disturbed.memory]),
        left_behind=disturbed.left_behind,
    )


def steps_for(minutes: float, pace: RunFolder) -> int:
    """How many steps a disturbed run makes in so many minutes, by the pace of a short run without faults."""
    step_s = median(float(line["seconds/total"]) for line in pace.metrics()[PACE_WARM_UP:])
    return max(PACE_STEPS, round(60 * minutes * (1 - STEPS_LOST) / step_s))


def _with(config: TrainConfig, **changes: Any) -> TrainConfig:
    return build_config(TrainConfig, config.model_copy(update=changes).model_dump(mode="json"), "chaos")


class FollowedRun:
    """A run with its driver in a process of its own, the faults that come to it, and what is seen of it.

    ``folder`` gets the run's folder, its configuration and its log; ``say`` is told of each fault.
    """

    def __init__(self, config: TrainConfig, folder: Path, name: str, schedule: Schedule, say: Say) -> None:
        file = folder / f"{name}.yaml"
        dump_config(_with(config, run=config.run.model_copy(update={"dir": str(folder), "name": name})), file)
        self.run = RunFolder(folder / name)
        self.recoveries = Recoveries()
        self.memory: list[MemorySample] = []
        self.seconds = 0.0  #: from its first training step to its end
        self.left_behind: list[str] = []  #: processes that were hit and had to be killed after the end
        self._learners, self._schedule, self._say = config.learner.workers, schedule, say
        self._hands = Hands()
        self._driver = Driver(self.run.path, file, folder / f"{name}.log")
        self._view = RunView(self.run, self._driver, self._hands)
        self._hit: list[Victim] = []
        self._fault = schedule.fault(0)
        self._due: float | None = None
        self._sampled, self._weighed = 0.0, -1  # when memory was sampled last; the last fault it was sampled before
        self._ending = False  # a fault is ending the driver
        self._start = time.monotonic()

    def go(self) -> str:
        """Run to the end; why it failed, or ""."""
        try:
            self._driver.start()
            failure = self._watch()
            self.seconds = self._now()
        finally:
            self._driver.end()
            self.left_behind = self._end_leftovers()
            self._hands.close()
        return failure

    def _now(self) -> float:
        """Seconds since the schedule began."""
        return time.monotonic() - self._start

    def _watch(self) -> str:
        """Look, disturb, start the driver again, until the run is over."""
        best, moved = 0, time.monotonic()
        while True:
            time.sleep(POLL_S)
            if (ended := self._driver.poll()) is not None:
                self.recoveries.driver_ended(ended, self._now())
                if ended == 0:
                    return ""
                if not self._ending:
                    return f"its driver ended with status {ended}:\n{self._driver.last_words()}"
                self._ending = False
                self._driver.start()
            sight = self._view.look()
            self.recoveries.observe(sight, self._now())
            self._disturb(sight)
            now = time.monotonic()
            if now - self._sampled > MEMORY_S:
                self._sample_memory()
            if sight.last_step > best:
                best, moved = sight.last_step, now
            if now - moved > NO_STEP_S:
                return f"no step after step {best} for {NO_STEP_S:g} s:\n{self._driver.last_words()}"

    def _disturb(self, sight: Sight) -> None:
        """Inject the fault that is due, if one is."""
        fault = self._fault
        if fault is None or sight.last_step == 0:
            return
        if self._due is None:
            self._start, self._due = time.monotonic(), fault.gap_s
        if self._now() < self._due:
            return
        if self._weighed < fault.index:  # so that what a fault ends has been weighed, however short its life was
            self._weighed = fault.index
            self._sample_memory()
        if (reason := self._inject(fault, sight)) is not None:
            if self._now() < self._due + PATIENCE_S:
                return
            self.recoveries.skip(fault, self._now(), reason)
        record = self.recoveries.records[-1]
        self._say(f"{record.at:6.1f} s  {fault.kind}: {record.victim or f'skipped, {reason}'}")
        self._fault = self._schedule.fault(fault.index + 1)
        self._due = self._now() + (0.0 if self._fault is None else self._fault.gap_s)

    def _sample_memory(self) -> None:
        self._sampled = time.monotonic()
        self.memory.extend(self._view.memory(self._sampled))

    def _inject(self, fault: Fault, sight: Sight) -> str | None:
        """Do it; else say why not."""
        at = self._now()
        try:
            match fault.kind.target:
                case "driver":
                    found = self._end_driver(fault)
                case "node":
                    found = self._remove_node(fault)
                case role:
                    found = self._hit_worker(fault, self._view.victims(role))
        except RayError as error:
            return f"its node does not answer: {type(error).__name__}"
        except Missed as miss:  # the driver ended just now
            return str(miss)
        if isinstance(found, str):
            return found
        words = f"node {found.node[:8]}" if fault.kind.target == "node" else f"{found.name} (pid {found.pid})"
        self.recoveries.inject(fault, at, words, sight, found.number)
        return None

    def _hit_worker(self, fault: Fault, victims: list[Victim]) -> Victim | str:
        if not victims:
            return "the run is starting, no such process is up"
        victim = fault.choose(victims)
        found: Victim | str = self._hands.call(victim.node, hit_own, victim, fault.kind.signal)
        self._hit += [found] if isinstance(found, Victim) else []
        return found

    def _end_driver(self, fault: Fault) -> Victim | str:
        pid = self._driver.pid
        if pid is None or self._ending or len(self._view.learners()) < self._learners:
            return "the driver is starting or ending"
        found = hit(Victim(pid, name="driver"), fault.kind.signal)
        self._ending = True
        return found

    def _remove_node(self, fault: Fault) -> Victim | str:
        """The victim is one of the actors that the node takes with it."""
        removable = self._view.removable_nodes()
        if not removable:
            return "no node has rollout actors but neither a learner, the service, nor the head"
        victim = removable[fault.choose(sorted(removable))]
        try:
            return self._hands.call(victim.node, kill_own_raylet) or victim
        except RayActorError:  # it took the hand with it, before that could answer
            return victim

    def _end_leftovers(self) -> list[str]:
        """Wait until every process that was hit is gone, and kill what is not."""
        deadline = time.monotonic() + GONE_S
        left: list[Victim] = []
        for victim in self._hit:
            limit_s = max(0.0, deadline - time.monotonic())
            with suppress(RayError):  # gone with its node
                left += self._hands.call(victim.node, end_leftovers, [victim], limit_s, patience_s=limit_s)
        return [f"{victim.name} (pid {victim.pid})" for victim in left]
