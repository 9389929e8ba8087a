"""What becomes of each injected fault, from what is seen of the run afterwards. A pure state machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bgrpo.chaos.schedule import Fault

POOLS = {"rollout": "rollout", "node": "rollout", "verifier": "verifier"}
"""The pool whose actor is lost when this target is hit."""

RESTARTING_TARGETS = ("driver", "learner")
"""After a fault of these the learners start again from the last checkpoint, whatever else happens."""


@dataclass(frozen=True, slots=True)
class LearnerLife:
    """One life of the learners."""

    identity: str  #: of learner 0's process; another life has another one.
    step: int  #: training step that it went on from.


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a run at one moment."""

    driver: int  #: number of the driver's life, from 0.
    last_step: int  #: last training step in ``metrics.jsonl``.
    learners: LearnerLife | None  #: the newest life of the learners; None before the first.
    #: by pool (``rollout``, ``verifier``), the pool's actors and whether each is up; empty when the service does not
    #: answer. Stand-ins are among them while they work.
    actors: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)


@dataclass(slots=True)
class FaultRecord:
    """One fault and what became of it. Times are seconds since its injection; None: not seen."""

    fault: Fault  #: of the schedule.
    at: float  #: seconds since the schedule began.
    victim: str = ""  #: who was hit, in words; for a skipped fault "".
    skipped: str | None = None  #: why it was not injected; None when it was.
    noticed_s: float | None = None  #: until the pool took its actor out of service, or the driver had ended.
    #: until another actor was up, or a stand-in at work, or the learners had started again.
    replaced_s: float | None = None
    step_s: float | None = None  #: until a training step was complete that the fault could have prevented.
    redone_steps: int | None = None  #: training steps that had to be made again.
    driver_status: int | None = None  #: exit status of the driver, where the fault ended it.


@dataclass(frozen=True, slots=True)
class _Open:
    """A fault whose consequences are not all seen yet."""

    record: FaultRecord
    actor: int | None
    before: Sight


class Recoveries:
    """Follows every injected fault until the run has got over it."""

    def __init__(self) -> None:
        self.records: list[FaultRecord] = []  #: one per fault of the schedule that came up
        self._open: list[_Open] = []

    def skip(self, fault: Fault, at: float, reason: str) -> None:
        """The fault was not injected."""
        self.records.append(FaultRecord(fault, at, skipped=reason))

    def inject(self, fault: Fault, at: float, victim: str, sight: Sight, actor: int | None = None) -> None:
        """The fault was injected, when ``sight`` had just been seen; ``actor`` is the number of the pool's one."""
        self.records.append(FaultRecord(fault, at, victim))
        self._open.append(_Open(self.records[-1], actor, sight))

    def driver_ended(self, status: int, at: float) -> None:
        """The driver ended, with this exit status (negative: by that signal)."""
        for record in (open_.record for open_ in self._open):
            if record.fault.kind.target == "driver" and record.noticed_s is None:
                record.noticed_s, record.driver_status = at - record.at, status

    def observe(self, sight: Sight, at: float) -> None:
        """Look at the run."""
        self._open = [open_ for open_ in self._open if not self._got_over(open_, sight, at - open_.record.at)]

    def _got_over(self, open_: _Open, sight: Sight, passed_s: float) -> bool:
        record, before, target = open_.record, open_.before, open_.record.fault.kind.target
        if target in RESTARTING_TARGETS:
            return self._restarted(record, before, sight, passed_s)
        if record.step_s is None and self._stepped(before, sight):
            record.step_s = passed_s
        pool = POOLS.get(target)
        if pool is None or sight.driver != before.driver:  # nothing to replace, or another pool by now
            return record.step_s is not None
        if actors := sight.actors.get(pool):
            if record.noticed_s is None and open_.actor not in actors:
                record.noticed_s = passed_s
            another_is_up = any(up and number not in before.actors.get(pool, {}) for number, up in actors.items())
            if record.noticed_s is not None and record.replaced_s is None and another_is_up:
                record.replaced_s = passed_s
        return record.step_s is not None and record.replaced_s is not None

    @staticmethod
    def _restarted(record: FaultRecord, before: Sight, sight: Sight, passed_s: float) -> bool:
        life = sight.learners
        if life is None or (before.learners is not None and life.identity == before.learners.identity):
            return False
        if record.replaced_s is None:
            record.replaced_s, record.redone_steps = passed_s, max(0, before.last_step - life.step)
        if sight.last_step > life.step:
            record.step_s = passed_s
        return record.step_s is not None

    @staticmethod
    def _stepped(before: Sight, sight: Sight) -> bool:
        """A step that began after the fault is complete."""
        if sight.learners is not None and sight.learners != before.learners:
            return sight.last_step > sight.learners.step
        return sight.last_step > before.last_step + 1  # the next one was under way
