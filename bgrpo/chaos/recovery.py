"""What becomes of each injected fault, from what is seen of the run afterwards. A pure state machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bgrpo.chaos.faults import DRIVER_FAULTS, RESTARTING_FAULTS, Fault, FaultKind


@dataclass(frozen=True, slots=True)
class LearnerLife:
    """One life of the learners.

    Attributes:
        identity: of learner 0's process; another life has another one.
        step: training step that it went on from.
    """

    identity: str
    step: int


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a run at one moment.

    Attributes:
        driver: number of the driver's life, from 0.
        last_step: last training step in ``metrics.jsonl``.
        learners: the newest life of the learners; None before the first.
        actors: by pool (``rollout``, ``verifier``), the pool's actors and whether each is up; empty when the service
            does not answer. Stand-ins are among them while they work.
    """

    driver: int
    last_step: int
    learners: LearnerLife | None
    actors: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)


POOLS = {
    FaultKind.KILL_ROLLOUT: "rollout",
    FaultKind.STOP_ROLLOUT: "rollout",
    FaultKind.REMOVE_NODE: "rollout",
    FaultKind.KILL_VERIFIER: "verifier",
}
"""The pool whose actor a fault hits."""


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One fault and what became of it. Times are seconds since its injection; None: not seen.

    Attributes:
        fault: of the schedule.
        at: seconds since the schedule began.
        victim: who was hit, in words; for a skipped fault "".
        skipped: why it was not injected; None when it was.
        noticed_s: until the pool took its actor out of service, or the driver had ended.
        replaced_s: until another actor was up, or a stand-in at work, or the learners had started again.
        step_s: until a training step was complete that the fault could have prevented.
        redone_steps: training steps that had to be made again.
        driver_status: exit status of the driver, where the fault ended it.
    """

    fault: Fault
    at: float
    victim: str = ""
    skipped: str | None = None
    noticed_s: float | None = None
    replaced_s: float | None = None
    step_s: float | None = None
    redone_steps: int | None = None
    driver_status: int | None = None


@dataclass(slots=True)
class _Open:
    """A fault whose consequences are not all seen yet."""

    record: int
    since: float
    actor: int | None
    before: Sight


class Recoveries:
    """Follows every injected fault until the run has got over it.

    Attributes:
        records: one per fault of the schedule that came up.
    """

    def __init__(self) -> None:
        self.records: list[FaultRecord] = []
        self._open: list[_Open] = []

    def skip(self, fault: Fault, at: float, reason: str) -> None:
        """The fault was not injected."""
        self.records.append(FaultRecord(fault, at, skipped=reason))

    def inject(self, fault: Fault, at: float, victim: str, sight: Sight, actor: int | None = None) -> None:
        """The fault was injected.

        Args:
            fault: which one.
            at: now, in seconds since the schedule began.
            victim: in words.
            sight: what was seen of the run just before.
            actor: number of the pool's actor that was hit.
        """
        self.records.append(FaultRecord(fault, at, victim))
        self._open.append(_Open(len(self.records) - 1, at, actor, sight))

    def driver_ended(self, status: int, at: float) -> None:
        """The driver ended, with this exit status (negative: by that signal)."""
        for open_ in self._open:
            record = self.records[open_.record]
            if record.fault.kind in DRIVER_FAULTS and record.noticed_s is None:
                self._set(open_, noticed_s=at - open_.since, driver_status=status)

    def observe(self, sight: Sight, at: float) -> None:
        """Look at the run."""
        for open_ in list(self._open):
            kind = self.records[open_.record].fault.kind
            if kind in RESTARTING_FAULTS:
                self._observe_restart(open_, sight, at)
            else:
                self._observe_pool(open_, POOLS.get(kind), sight, at)

    def _observe_restart(self, open_: _Open, sight: Sight, at: float) -> None:
        before, life = open_.before.learners, sight.learners
        if life is None or (before is not None and life.identity == before.identity):
            return
        record = self.records[open_.record]
        if record.replaced_s is None:
            redone = max(0, open_.before.last_step - life.step)
            self._set(open_, replaced_s=at - open_.since, redone_steps=redone)
        if sight.last_step > life.step:
            self._set(open_, step_s=at - open_.since)
            self._open.remove(open_)

    def _observe_pool(self, open_: _Open, pool: str | None, sight: Sight, at: float) -> None:
        if self.records[open_.record].step_s is None and self._stepped(open_.before, sight):
            self._set(open_, step_s=at - open_.since)
        gone = pool is None or sight.driver != open_.before.driver  # nothing to replace, or another pool by now
        if not gone and pool is not None and (actors := sight.actors.get(pool)):
            self._observe_actors(open_, pool, actors, at)
        record = self.records[open_.record]
        if record.step_s is not None and (gone or record.replaced_s is not None):
            self._open.remove(open_)

    def _observe_actors(self, open_: _Open, pool: str, actors: Mapping[int, bool], at: float) -> None:
        if self.records[open_.record].noticed_s is None and open_.actor not in actors:
            self._set(open_, noticed_s=at - open_.since)
        record = self.records[open_.record]
        before = open_.before.actors.get(pool, {})
        another_is_up = any(up and number not in before for number, up in actors.items())
        if record.noticed_s is not None and record.replaced_s is None and another_is_up:
            self._set(open_, replaced_s=at - open_.since)

    @staticmethod
    def _stepped(before: Sight, sight: Sight) -> bool:
        """A step that began after the fault is complete."""
        if sight.learners is not None and sight.learners != before.learners:
            return sight.last_step > sight.learners.step
        return sight.last_step > before.last_step + 1  # the next one was under way

    def _set(self, open_: _Open, **changes: float | int) -> None:
        self.records[open_.record] = replace(self.records[open_.record], **changes)  # type: ignore[arg-type]
