"""What is concluded from what is seen of a run after a fault."""

from __future__ import annotations

from bgrpo.chaos.recovery import FaultRecord, LearnerLife, Recoveries, Sight
from bgrpo.chaos.schedule import Fault, FaultKind

LIFE = LearnerLife("a", 0)


def fault(kind: FaultKind, index: int = 0) -> Fault:
    return Fault(index, kind, 5.0, 0.5)


def sight(step: int, rollout: dict[int, bool], *, life: LearnerLife | None = LIFE, driver: int = 0) -> Sight:
    return Sight(driver, step, life, {"rollout": rollout, "verifier": {0: True}})


def follow(kind: FaultKind, sights: list[tuple[float, Sight]], actor: int | None = None) -> FaultRecord:
    """Inject at the first sight's time, then look at the others."""
    recoveries = Recoveries()
    (start, before), *later = sights
    recoveries.inject(fault(kind), start, "x", before, actor)
    for at, seen in later:
        recoveries.observe(seen, at)
    return recoveries.records[0]


def test_an_actor_is_noticed_when_it_has_left_and_replaced_when_a_new_one_is_up() -> None:
    both = {0: True, 1: True}
    record = follow(
        FaultKind.KILL_ROLLOUT,
        [
            (10.0, sight(7, both)), (10.5, sight(7, both)), (11.0, sight(7, {0: True})),
            (12.0, sight(8, {0: True, 2: False})), (14.0, sight(9, {0: True, 2: False})),
            (15.0, sight(9, {0: True, 2: True})), (99.0, sight(50, {0: True, 2: True})),
        ],
        actor=1,
    )  # fmt: skip
    assert (record.noticed_s, record.replaced_s, record.step_s) == (1.0, 5.0, 4.0)
    assert record.redone_steps is None


def test_a_stand_in_that_begins_to_work_replaces_the_lost_actor() -> None:
    record = follow(
        FaultKind.KILL_ROLLOUT,
        [
            (10.0, sight(7, {1: True, 3: True})), (10.5, sight(7, {1: True, 3: True})),
            (11.0, sight(7, {1: True, 2: True, 4: False})), (20.0, sight(9, {1: True, 4: True})),
        ],
        actor=3,
    )  # fmt: skip
    assert (record.noticed_s, record.replaced_s) == (1.0, 1.0)


def test_the_step_under_way_does_not_show_that_the_fault_was_survived() -> None:
    record = follow(FaultKind.KILL_CHECK, [(0.0, sight(7, {0: True})), (1.0, sight(8, {0: True}))])
    assert record.step_s is None
    record = follow(FaultKind.KILL_CHECK, [(0.0, sight(7, {0: True})), (2.0, sight(9, {0: True}))])
    assert record.step_s == 2.0


def test_a_pool_that_does_not_answer_shows_nothing() -> None:
    silent = Sight(0, 7, LIFE, {"rollout": {}, "verifier": {}})
    record = follow(FaultKind.STOP_ROLLOUT, [(0.0, sight(7, {0: True})), (1.0, silent)], actor=0)
    assert record.noticed_s is None and record.replaced_s is None


def test_learners_that_start_again_say_how_many_steps_are_redone() -> None:
    again = LearnerLife("b", 15)
    record = follow(
        FaultKind.KILL_LEARNER,
        [
            (0.0, sight(18, {0: True})), (3.0, sight(18, {0: True})), (9.0, sight(15, {0: True}, life=again)),
            (9.5, sight(15, {0: True}, life=again)), (11.0, sight(16, {0: True}, life=again)),
        ],
    )  # fmt: skip
    assert (record.replaced_s, record.step_s, record.redone_steps) == (9.0, 11.0, 3)


def test_a_service_that_comes_back_is_settled_by_steps_whether_learners_start_again_or_not() -> None:
    for life in (LIFE, LearnerLife("b", 5)):
        record = follow(
            FaultKind.KILL_SERVICE, [(0.0, sight(7, {0: True})), (3.0, sight(7, {})), (9.0, sight(9, {}, life=life))]
        )
        assert record.step_s == 9.0


def test_a_driver_that_ended_and_came_back() -> None:
    recoveries = Recoveries()
    recoveries.inject(fault(FaultKind.TERMINATE_DRIVER), 100.0, "driver", sight(30, {0: True}))
    recoveries.driver_ended(143, 104.0)
    recoveries.driver_ended(-9, 140.0)  # of a later fault: the first end counts
    recoveries.observe(Sight(1, 31, LIFE, {}), 110.0)
    recoveries.observe(Sight(1, 31, LearnerLife("b", 31), {}), 120.0)
    assert recoveries.records[0].step_s is None
    recoveries.observe(Sight(1, 32, LearnerLife("b", 31), {}), 121.0)
    record = recoveries.records[0]
    assert (record.noticed_s, record.driver_status) == (4.0, 143)
    assert (record.replaced_s, record.step_s, record.redone_steps) == (20.0, 21.0, 0)


def test_a_pool_that_went_with_its_driver_is_settled_by_the_next_steps() -> None:
    record = follow(
        FaultKind.KILL_ROLLOUT,
        [
            (0.0, sight(7, {0: True, 1: True})),
            (30.0, sight(6, {0: True, 1: True}, life=LearnerLife("b", 5), driver=1)),
        ],
        actor=1,
    )
    assert (record.noticed_s, record.replaced_s, record.step_s) == (None, None, 30.0)


def test_skipped_faults_are_recorded_with_their_reason() -> None:
    recoveries = Recoveries()
    recoveries.skip(fault(FaultKind.KILL_LEARNER), 3.0, "nobody there")
    assert recoveries.records[0].skipped == "nobody there"
    recoveries.observe(sight(9, {0: True}), 9.0)
    assert recoveries.records == [FaultRecord(fault(FaultKind.KILL_LEARNER), 3.0, skipped="nobody there")]
