"""The pool's state machine against a model that plays the actors, the clock and every accident."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import (
    Answer,
    Command,
    Dispatch,
    Kill,
    Load,
    PoolLimits,
    Refuse,
    Resized,
    Retire,
    Spawn,
    Unplaceable,
)
from bgrpo.distributed.pool.pool_scaling import ScalingLimits

LIMITS = PoolLimits(
    placement_s=200,
    start_s=50,
    load_s=20,
    silence_s=1000,
    respawns=5,
    deaths_per_request=3,
    backoff_s=0.5,
    max_backoff_s=4,
)
LISTENING = replace(LIMITS, silence_s=3.5)
SCALING = ScalingLimits(least=1, most=4, up_s=5.0, down_s=30.0)
REQUEST_S = 10.0


def started(size: int = 2, scaling: ScalingLimits | None = None, limits: PoolLimits = LIMITS) -> PoolState:
    """A pool whose actors are up and idle."""
    pool = PoolState(size, limits, scaling)
    assert pool.start(0.0) == [Spawn(number) for number in range(size)]
    for number in range(size):
        assert up(pool, number, 0.0) == []
    return pool


def up(pool: PoolState, number: int, now: float) -> list[Command]:
    """The actor is placed and prepared at once."""
    assert pool.placed(number, now) == []
    return pool.spawned(number, now)


def test_load_comes_before_dispatch_and_is_kept() -> None:
    pool = started(1)
    assert pool.submit(7, "v0", REQUEST_S, 1.0) == [Load(0, "v0")]
    assert pool.loaded(0, "v0", 2.0) == [Dispatch(0, 7)]
    assert pool.replied(0, 7, 3.0) == [Answer(7)]
    assert pool.submit(8, "v0", REQUEST_S, 4.0) == [Dispatch(0, 8)]
    assert pool.submit(9, "v1", REQUEST_S, 4.0) == []
    assert pool.replied(0, 8, 5.0) == [Answer(8), Load(0, "v1")]


def test_one_request_does_not_make_every_actor_load() -> None:
    pool = started(3)
    assert pool.submit(0, "v0", REQUEST_S, 0.0) == [Load(0, "v0")]
    assert pool.submit(1, "v0", REQUEST_S, 0.0) == [Load(1, "v0")]
    assert pool.prefer("v1", 0.0) == [Load(2, "v1")]


def test_an_actor_needs_no_weights_when_the_request_needs_none() -> None:
    assert started(1).submit(0, None, REQUEST_S, 0.0) == [Dispatch(0, 0)]


def test_death_in_the_middle_of_a_request_redoes_it_first() -> None:
    pool = started(1)
    pool.submit(0, None, REQUEST_S, 0.0)
    pool.submit(1, None, REQUEST_S, 0.0)
    assert pool.died(0, "SIGKILL", 1.0) == []
    assert pool.tick(1.0) == [Spawn(1)]
    assert pool.replied(0, 0, 1.5) == [], "a dead actor's late reply"
    assert up(pool, 0, 1.5) == [], "a dead actor does not come back"
    assert up(pool, 1, 2.0) == [Dispatch(1, 0)]
    assert pool.replied(1, 1, 2.0) == [], "not what it works on"
    assert pool.replied(1, 0, 3.0) == [Answer(0), Dispatch(1, 1)]
    assert pool.replied(1, 0, 3.0) == [], "answered already"
    assert pool.restarts == 1
    assert pool.first_failure is not None and pool.first_failure.cause == "SIGKILL"


def test_hang_is_killed_after_the_limit() -> None:
    pool = started(1)
    pool.submit(0, None, REQUEST_S, 0.0)
    assert pool.tick(REQUEST_S) == []
    assert pool.tick(REQUEST_S + 0.1) == [Kill(0, "it was busy with request 0 for more than 10 s"), Spawn(1)]
    assert up(pool, 1, 11.0) == [Dispatch(1, 0)]


def test_silence_ends_an_actor_whatever_it_does() -> None:
    pool = started(2, limits=LISTENING)
    pool.submit(0, None, 1000.0, 0.0)
    for second in range(4):
        assert pool.tick(float(second)) == []
    pool.heard(1)
    reason = "its process gave no sign of life for more than 3.5 s"
    assert pool.tick(4.0) == [Kill(0, reason), Spawn(2), Dispatch(1, 0)]
    pool.heard(0)  # too late
    for second in range(5, 50):
        pool.heard(1)
        assert pool.tick(float(second)) == [], "one that is pending or starting is not asked"
    assert up(pool, 2, 50.0) == []
    pool.heard(1)
    assert pool.tick(51.0) == []
    assert pool.failure is None and pool.restarts == 1


def test_a_pool_that_stood_still_itself_does_not_take_that_for_silence() -> None:
    pool = started(1, limits=LISTENING)
    pool.tick(0.0)
    assert pool.tick(3600.0) == []
    for second in range(1, 3):
        assert pool.tick(3600.0 + second) == []
    assert [type(command) for command in pool.tick(3603.0)] == [Kill, Spawn], "4 of these seconds were listened to"


def test_a_withdrawn_request_still_has_its_limit() -> None:
    pool = started(1)
    pool.submit(0, None, REQUEST_S, 0.0)
    assert pool.withdraw(0, 1.0) == []
    assert pool.oldest_wait(1.0) == 0.0
    assert [type(command) for command in pool.tick(REQUEST_S + 0.1)] == [Kill, Spawn]


def test_a_request_that_ends_three_actors_is_refused_by_name() -> None:
    pool = started(1)
    commands = pool.submit(5, None, REQUEST_S, 0.0)
    for death in range(3):
        assert commands[-1] == Dispatch(death, 5)
        commands = pool.died(death, f"death {death}", now := 10.0 * death)
        if death < 2:
            assert pool.tick(now + 5.0) == [Spawn(death + 1)]
            commands = up(pool, death + 1, now + 6.0)
    assert commands == [Refuse(5, "3 actors in a row died over it; the last: death 2")]
    assert pool.failure is None
    assert pool.tick(100.0) == [Spawn(3)]
    assert up(pool, 3, 101.0) == []
    assert pool.submit(6, None, REQUEST_S, 102.0) == [Dispatch(3, 6)]


def test_gives_up_with_the_first_cause() -> None:
    pool = PoolState(1, LIMITS)
    pool.start(0.0)
    pool.submit(0, None, REQUEST_S, 0.0)
    waits, now = [], 0.0
    for number in range(5):
        assert pool.died(number, f"cause {number}", now) == []
        assert pool.slots[0].actor is None
        waits.append(pool.slots[0].spawn_at - now)
        assert waits[-1] == 0.0 or pool.tick(now + 0.9 * waits[-1]) == []
        now = pool.slots[0].spawn_at
        assert pool.tick(now) == [Spawn(number + 1)]
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0]
    commands = pool.died(5, "cause 5", now)
    assert pool.failure is not None and "6 actors failed in a row" in pool.failure
    assert "the first was actor 0, pending: cause 0" in pool.failure
    assert commands == [Refuse(0, pool.failure)]
    assert pool.submit(1, None, REQUEST_S, now) == [Refuse(1, pool.failure)]
    assert pool.tick(now + 1000) == []


def test_losing_a_whole_node_is_no_streak() -> None:
    pool = started(8)
    for number in range(8):
        pool.died(number, "node lost", 1.0)
    assert pool.failure is None
    assert pool.tick(1.0) == [Spawn(number) for number in range(8, 16)]


def test_an_answer_ends_the_streak_of_every_slot() -> None:
    pool = started(2)
    now = 0.0
    for request in range(40):
        now += 100.0
        broken = pool.slots[0].actor
        if broken is not None:
            pool.died(broken, "always", now)
        pool.tick(now + 50)
        pool.submit(request, None, REQUEST_S, now + 50)
        assert pool.replied(1, request, now + 51) == [Answer(request)]
    assert pool.failure is None


def test_fatal_failure_gives_up_at_once() -> None:
    pool = PoolState(2, LIMITS)
    pool.start(0.0)
    pool.submit(0, None, REQUEST_S, 0.0)
    assert pool.died(1, "no such policy", 1.0, fatal=True) == [Refuse(0, "an actor cannot start: no such policy")]
    assert pool.tick(2.0) == []


def test_lost_weights_refuse_their_requests_only() -> None:
    pool = started(1)
    pool.prefer("old", 0.0)
    pool.submit(0, "old", REQUEST_S, 0.0)
    pool.submit(1, "new", REQUEST_S, 0.0)
    commands = pool.weights_lost(0, "old", "owner died", 1.0)
    assert commands == [Refuse(0, "the weights it needs are lost: owner died"), Load(0, "new")]


def test_lost_weights_are_not_loaded_in_advance_again() -> None:
    pool = started(1)
    assert pool.prefer("v0", 0.0) == [Load(0, "v0")]
    assert pool.weights_lost(0, "v0", "owner died", 1.0) == []
    assert pool.prefer("v1", 2.0) == [Load(0, "v1")]


def test_description_names_everybody() -> None:
    pool = started(2)
    pool.submit(0, None, REQUEST_S, 0.0)
    pool.died(1, "gone", 1.0)
    pool.tick(1.0)
    pool.submit(1, None, REQUEST_S, 2.0)
    assert pool.describe(5.0) == [
        "request 0 has waited 5.0 s, is at actor 0",
        "request 1 has waited 3.0 s, is in the queue",
        "actor 0 has been busy with request 0 for 5.0 s",
        "actor 2 has been pending for 4.0 s",
    ]


def test_waiting_for_a_place_is_neither_a_start_nor_a_failure() -> None:
    pool = PoolState(2, LIMITS)
    pool.start(0.0)
    assert pool.tick(LIMITS.start_s + 1) == [], "the start has not begun"
    assert up(pool, 0, 60.0) == []
    assert pool.submit(0, None, REQUEST_S, 60.0) == [Dispatch(0, 0)], "the run goes on with those that are up"
    assert pool.replied(0, 0, 61.0) == [Answer(0)]
    assert pool.tick(10_000.0) == [], "one that is up is enough"
    assert pool.placed(1, 10_000.0) == []
    assert pool.tick(10_000.0 + LIMITS.start_s) == []
    kill, spawn = pool.tick(10_000.1 + LIMITS.start_s)
    assert kill == Kill(1, "it was starting for more than 50 s") and spawn == Spawn(2)


def test_no_room_for_anyone_ends_the_waiting() -> None:
    pool = started(2)
    pool.submit(0, None, REQUEST_S, 100.0)
    for number in range(2):
        pool.died(number, "node lost", 100.0, node_lost=True)
    assert pool.tick(100.0) == [Spawn(2), Spawn(3)]
    assert pool.tick(100.0 + LIMITS.placement_s) == []
    (command,) = pool.tick(100.1 + LIMITS.placement_s)
    assert isinstance(command, Unplaceable) and command.seconds == pytest.approx(LIMITS.placement_s + 0.1)
    assert pool.abandon("no room", 301.0) == [Refuse(0, "no room")]


def test_nodes_that_go_away_cost_no_lives() -> None:
    pool = started(1)
    pool.submit(0, None, REQUEST_S, 0.0)
    for number in range(20):
        assert pool.died(number, "node lost", float(number), node_lost=True) == []
        assert pool.tick(float(number)) == [Spawn(number + 1)], "at once"
        assert up(pool, number + 1, float(number)) == [Dispatch(number + 1, 0)]
    assert pool.replied(20, 0, 20.0) == [Answer(0)]


def test_garbage_ends_the_actor_and_is_counted() -> None:
    pool = started(2)
    assert pool.submit(0, None, REQUEST_S, 0.0) == [Dispatch(0, 0)]
    kill, dispatch = pool.garbled(0, 0, "no groups", 1.0)
    assert kill == Kill(0, "its reply to request 0 is garbage: no groups")
    assert dispatch == Dispatch(1, 0)
    assert pool.garbled(0, 0, "again", 1.0) == [], "dead already"
    assert pool.garbled_replies == 1
    assert pool.replied(1, 0, 2.0) == [Answer(0)]
    assert pool.first_failure is not None and pool.first_failure.cause == f"killed because {kill.reason}"


def test_the_pool_grows_under_a_queue_and_shrinks_when_it_is_gone() -> None:
    pool = started(1, SCALING)
    for number in range(3):
        pool.submit(number, None, 1000.0, 0.0)
    assert pool.tick(4.9) == []
    reason = "requests waited for 5.0 s of the last 5.0 s (limit 5 s), 2 wait now"
    assert pool.tick(5.0) == [Resized(1, 2, reason), Spawn(1)]
    assert pool.tick(9.9) == [], "one after the other"
    assert [type(command) for command in pool.tick(10.0)] == [Resized, Spawn]
    assert pool.tick(100.0) == [], "as many are on their way as requests wait"
    assert up(pool, 1, 101.0) == [Dispatch(1, 1)]
    assert up(pool, 2, 101.0) == [Dispatch(2, 2)]
    assert pool.replied(0, 0, 102.0) == [Answer(0)]
    assert pool.replied(2, 2, 103.0) == [Answer(2)]
    assert pool.tick(131.9) == []
    commands = pool.tick(133.0)
    assert commands == [Resized(3, 1, "at most 1 requests were open at once for 30 s"), Retire(2), Retire(0)]
    assert pool.replied(1, 1, 134.0) == [Answer(1)]
    assert pool.tick(1000.0) == [], "never fewer than the least"


def test_a_busy_actor_finishes_before_it_leaves_and_stays_if_the_pool_grows_again() -> None:
    scaling = ScalingLimits(least=1, most=2, up_s=1.0, down_s=2.0)
    pool = started(2, scaling)
    pool.submit(0, None, 100.0, 0.0)
    pool.submit(1, None, 100.0, 0.0)
    pool.withdraw(0, 0.0)
    pool.withdraw(1, 0.0)  # nobody waits, but both actors are busy
    commands = pool.tick(2.0)
    assert commands == [Resized(2, 1, "no request came for 2 s")]
    assert [actor.state for actor in pool.actors.values()] == ["busy", "busy"]
    pool.submit(2, None, 100.0, 3.0)
    assert [type(command) for command in pool.tick(4.0)] == [Resized], "the leaving actor is called back"
    assert pool.replied(1, 1, 5.0) == [Dispatch(1, 2)]
    assert pool.size == 2 and len(pool.actors) == 2


def test_a_busy_actor_leaves_after_its_reply() -> None:
    pool = started(2, ScalingLimits(least=1, most=2, up_s=1.0, down_s=2.0))
    for number in range(2):
        pool.submit(number, None, 100.0, 0.0)
        pool.withdraw(number, 0.0)
    assert [type(command) for command in pool.tick(2.0)] == [Resized]
    assert pool.replied(1, 1, 3.0) == [Retire(1)]
    assert pool.replied(0, 0, 3.0) == []
    assert pool.tick(4.0) == [], "its slot is gone"


def with_a_stand_in() -> PoolState:
    """A pool of two actors that are up and idle, and of one stand-in, number 2, that is up."""
    pool = PoolState(2, LIMITS, stand_ins=1)
    assert pool.start(0.0) == [Spawn(0), Spawn(1)], "a stand-in does not slow the start of the others"
    for number in range(2):
        assert pool.tick(0.0) == []
        assert up(pool, number, 0.0) == []
    assert pool.tick(0.0) == [Spawn(2, is_stand_in=True)]
    assert up(pool, 2, 1.0) == []
    return pool


def test_a_stand_in_rests_while_nobody_is_missing() -> None:
    pool = with_a_stand_in()
    assert pool.prefer("v0", 2.0) == [Load(0, "v0"), Load(1, "v0")]
    for number in range(3):
        assert pool.submit(number, "v0", REQUEST_S, 2.0) == []
    assert pool.loaded(0, "v0", 3.0) == [Dispatch(0, 0)]
    assert pool.loaded(1, "v0", 3.0) == [Dispatch(1, 1)]
    assert pool.tick(4.0) == [], "request 2 waits for one of the two"
    assert [actor.number for actor in pool.at_work()] == [0, 1]


def test_a_stand_in_works_until_the_lost_actor_is_replaced() -> None:
    pool = with_a_stand_in()
    for number in range(2):
        pool.submit(number, None, REQUEST_S, 2.0)
    assert pool.died(0, "SIGKILL", 3.0) == [Dispatch(2, 0)], "at once"
    assert pool.tick(3.0) == [Spawn(3)]
    assert pool.replied(2, 0, 4.0) == [Answer(0)]
    assert pool.submit(2, None, REQUEST_S, 5.0) == [Dispatch(2, 2)]
    assert up(pool, 3, 6.0) == []
    assert {actor.number for actor in pool.at_work()} == {1, 2, 3}, "nobody is taken from its work"
    assert pool.replied(2, 2, 7.0) == [Answer(2)]
    assert pool.submit(3, None, REQUEST_S, 8.0) == [Dispatch(3, 3)]
    assert pool.submit(4, None, REQUEST_S, 8.0) == [], "the stand-in rests again"
    assert pool.size == 2


def test_a_lost_stand_in_is_replaced_after_the_others() -> None:
    pool = with_a_stand_in()
    pool.died(0, "SIGKILL", 2.0)
    pool.died(2, "SIGKILL", 2.0)
    assert pool.tick(2.0) == [Spawn(3)]
    assert pool.describe(2.0)[-1] == "slot 2 is empty, next actor once the others are up"
    assert up(pool, 3, 3.0) == []
    assert pool.tick(3.1) == [Spawn(4, is_stand_in=True)]


class PoolModel(RuleBasedStateMachine):
    """Plays random actors: some start, load and reply, some die or hang, some say things that are no longer true."""

    @initialize(size=st.integers(1, 4), elastic=st.booleans(), stand_ins=st.integers(0, 2))
    def begin(self, size: int, elastic: bool, stand_ins: int) -> None:
        self.now = 0.0
        self.pool = PoolState(size, LISTENING, SCALING if elastic else None, stand_ins)
        self.stand_ins: set[int] = set()
        self.decisions: list[tuple[float, int, int]] = []
        self.open_since: list[tuple[float, int]] = [(0.0, 0)]  # the number of open requests, from this time on
        self.alive: dict[int, tuple[str, Any]] = {}  # what each live actor was last told, as the actor sees it
        self.holds: dict[int, Hashable] = {}
        self.silence: dict[int, float] = {}  # of each actor that was ever up: seconds since it was heard
        self.ever: list[int] = []
        self.open: dict[int, Hashable] = {}
        self.ended: list[int] = []
        self.withdrawn: set[int] = set()
        self.deaths: dict[int, int] = {}
        self.obey(self.pool.start(self.now))

    def obey(self, commands: list[Command], replied: int | None = None, lost: Hashable = None) -> None:
        for command in commands:
            match command:
                case Spawn(actor, is_stand_in):
                    assert actor not in self.ever, "numbers are never used again"
                    if is_stand_in:
                        self.stand_ins.add(actor)
                    self.ever.append(actor)
                    self.alive[actor] = ("pending", None)
                    self.holds[actor] = None
                case Load(actor, weights):
                    assert self.alive[actor][0] == "idle"
                    self.check_rest(actor)
                    self.alive[actor] = ("loading", weights)
                    self.holds[actor] = None
                case Dispatch(actor, request):
                    assert self.alive[actor][0] == "idle"
                    self.check_rest(actor)
                    assert self.holds[actor] == self.open[request], "dispatched only to a holder of its weights"
                    assert request not in [work for state, work in self.alive.values() if state == "busy"]
                    self.alive[actor] = ("busy", request)
                case Kill(actor, reason):
                    if "no sign of life" in reason:
                        assert self.silence[actor] > LISTENING.silence_s
                    self.lose(actor)
                case Retire(actor):
                    assert self.alive.pop(actor)[0] != "busy", "nobody is taken from its work"
                    assert actor not in self.stand_ins
                case Resized(before, after, _):
                    self.check_decision(before, after)
                case Unplaceable(seconds):
                    assert seconds > LIMITS.placement_s
                    assert {state for state, _ in self.alive.values()} == {"pending"}
                    self.obey(self.pool.abandon("no room", self.now))
                case Answer(request):
                    assert request == replied, "answered only by the reply just given"
                    self.end(request)
                case Refuse(request, cause):
                    assert (
                        self.deaths.get(request, 0) >= LIMITS.deaths_per_request
                        or self.pool.failure == cause
                        or (cause == "the weights it needs are lost: gone" and self.open[request] == lost)
                    )
                    self.end(request)
        self.open_since.append((self.now, len(self.open)))

    def check_rest(self, actor: int) -> None:
        """A stand-in that is given something stands in for somebody: no more work at once than actors asked for."""
        if actor in self.stand_ins:
            up = {other for other, (state, _) in self.alive.items() if state not in ("pending", "starting")}
            standing_in = {other for other in up & self.stand_ins if self.alive[other][0] != "idle"} - {actor}
            assert len(up - self.stand_ins) + len(standing_in) < self.pool.size

    def check_decision(self, before: int, after: int) -> None:
        """Neither too many nor too few, and no flapping."""
        assert SCALING.least <= after <= SCALING.most and after != before
        last = self.decisions[-1][0] if self.decisions else 0.0
        if after > before:
            assert after == before + 1
            assert self.now - last >= SCALING.up_s - 1e-9
            assert len(self.pool.queue) > 0
        else:
            assert self.now - last >= SCALING.down_s - 1e-9
            until = [since for since, _ in self.open_since[1:]] + [self.now]
            begin = self.now - SCALING.down_s
            assert after >= max(n for (_, n), end in zip(self.open_since, until, strict=True) if end > begin)
        self.decisions.append((self.now, before, after))

    def end(self, request: int) -> None:
        assert request not in self.ended and request not in self.withdrawn, "every request ends once"
        del self.open[request]
        self.ended.append(request)

    def lose(self, actor: int, node_lost: bool = False) -> None:
        state, work = self.alive.pop(actor)
        if state == "busy" and not node_lost:
            self.deaths[work] = self.deaths.get(work, 0) + 1

    def pick(self, data: st.DataObject, *states: str) -> int:
        return data.draw(st.sampled_from([actor for actor, (state, _) in self.alive.items() if state in states]))

    def any_in(self, *states: str) -> bool:
        return any(state in states for state, _ in self.alive.values())

    @rule(weights=st.sampled_from(["v0", "v1", "v2"]))
    def submit(self, weights: str) -> None:
        number = len(self.open) + len(self.ended) + len(self.withdrawn)
        self.open[number] = weights
        self.obey(self.pool.submit(number, weights, REQUEST_S, self.now))

    @rule(weights=st.sampled_from(["v0", "v1", "v2"]))
    def prefer(self, weights: str) -> None:
        self.obey(self.pool.prefer(weights, self.now))

    @precondition(lambda self: self.any_in("pending"))
    @rule(data=st.data())
    def placed(self, data: st.DataObject) -> None:
        actor = self.pick(data, "pending")
        self.alive[actor] = ("starting", None)
        self.obey(self.pool.placed(actor, self.now))

    @precondition(lambda self: self.any_in("busy"))
    @rule(data=st.data())
    def garbled(self, data: st.DataObject) -> None:
        actor = self.pick(data, "busy")
        before = self.pool.garbled_replies
        self.obey(self.pool.garbled(actor, self.alive[actor][1], "nonsense", self.now))
        assert actor not in self.alive
        assert self.pool.garbled_replies == before + 1

    @precondition(lambda self: self.any_in("starting"))
    @rule(data=st.data())
    def spawned(self, data: st.DataObject) -> None:
        actor = self.pick(data, "starting")
        self.alive[actor] = ("idle", None)
        self.silence[actor] = 0.0
        self.obey(self.pool.spawned(actor, self.now))

    @precondition(lambda self: self.any_in("loading"))
    @rule(data=st.data())
    def loaded(self, data: st.DataObject) -> None:
        actor = self.pick(data, "loading")
        weights = self.holds[actor] = self.alive[actor][1]
        self.alive[actor] = ("idle", None)
        self.obey(self.pool.loaded(actor, weights, self.now))

    @precondition(lambda self: self.any_in("loading"))
    @rule(data=st.data())
    def weights_lost(self, data: st.DataObject) -> None:
        actor = self.pick(data, "loading")
        weights = self.alive[actor][1]
        self.alive[actor] = ("idle", None)
        self.obey(self.pool.weights_lost(actor, weights, "gone", self.now), lost=weights)

    @precondition(lambda self: self.any_in("busy"))
    @rule(data=st.data())
    def replied(self, data: st.DataObject) -> None:
        actor = self.pick(data, "busy")
        request = self.alive[actor][1]
        self.alive[actor] = ("idle", None)
        self.obey(self.pool.replied(actor, request, self.now), request)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), node_lost=st.booleans())
    def died(self, data: st.DataObject, node_lost: bool) -> None:
        actor = self.pick(data, "pending", "starting", "loading", "idle", "busy")
        self.lose(actor, node_lost)
        self.obey(self.pool.died(actor, f"death of {actor}", self.now, node_lost=node_lost))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 11.0, 60.0]))
    def wait(self, seconds: float) -> None:
        for actor in self.silence:
            self.silence[actor] += min(seconds, 1.0)
        self.now += seconds
        self.obey(self.pool.tick(self.now))
        assert all(self.silence[actor] <= LISTENING.silence_s for actor in self.alive if actor in self.silence)

    @rule(data=st.data())
    def pulses(self, data: st.DataObject) -> None:
        """Signs of life, also late ones of actors that are dead."""
        for actor in data.draw(st.sets(st.sampled_from(self.ever))) if self.ever else ():
            self.pool.heard(actor)
            if actor in self.silence:
                self.silence[actor] = 0.0

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        self.withdrawn.add(request)
        weights = self.open.pop(request)
        commands = self.pool.withdraw(request, self.now)
        assert Dispatch not in [type(command) for command in commands] or weights is not None
        self.obey(commands)

    @precondition(lambda self: self.ever)
    @rule(data=st.data(), number=st.integers(0, 30))
    def untrue_event(self, data: st.DataObject, number: int) -> None:
        """Events about dead actors, or that an actor is not in a state to give, change nothing."""
        actor = data.draw(st.sampled_from(self.ever))
        state, work = self.alive.get(actor, ("dead", None))
        if state != "pending":
            assert self.pool.placed(actor, self.now) == []
        if state != "starting":
            assert self.pool.spawned(actor, self.now) == []
        if state != "loading":
            assert self.pool.loaded(actor, "v0", self.now) == []
        assert self.pool.loaded(actor, "never asked for", self.now) == []
        if (state, work) != ("busy", number):
            assert self.pool.replied(actor, number, self.now) == []
            assert self.pool.garbled(actor, number, "garbage", self.now) == []
        if state == "dead":
            assert self.pool.died(actor, "again", self.now) == []

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert {number: str(actor.state) for number, actor in self.pool.actors.items()} == {
            number: state for number, (state, _) in self.alive.items()
        }
        assert set(self.pool.requests) == set(self.open)
        others = set(self.alive) - self.stand_ins
        assert len(set(self.alive) & self.stand_ins) <= self.pool.stand_ins
        if self.pool.scaling is None:
            assert len(others) <= self.pool.size and not self.decisions
        else:
            assert len(others) <= SCALING.most and SCALING.least <= self.pool.size <= SCALING.most
        staying = [slot for slot in self.pool.slots.values() if not (slot.is_retiring or slot.is_stand_in)]
        assert len(staying) == self.pool.size
        for actor in self.pool.actors.values():
            assert self.pool.slots[actor.slot].actor == actor.number
            assert actor.state == "busy" or not self.pool.slots[actor.slot].is_retiring
        busy = [work for state, work in self.alive.values() if state == "busy"]
        assert set(self.pool.queue) == set(self.open) - set(busy)
        idle = {actor for actor, (state, _) in self.alive.items() if state == "idle"}
        up = {actor for actor, (state, _) in self.alive.items() if state not in ("pending", "starting")}
        if len(up - self.stand_ins) + len((up & self.stand_ins) - idle) >= self.pool.size:
            idle -= self.stand_ins  # they rest, rightly
        assert not idle or len(self.pool.queue) <= sum(state == "loading" for state, _ in self.alive.values()), (
            "no actor is idle while a request waits that nobody is about to serve"
        )
        if self.pool.failure is not None:
            assert not self.open

    def teardown(self) -> None:
        """From wherever the accidents led: once they stop, every open request is answered."""
        if not hasattr(self, "pool") or self.pool.failure is not None:
            return
        for _ in range(4 * len(self.open) + 10):
            for actor in self.alive:
                self.pool.heard(actor)
            self.now += 5.0
            self.obey(self.pool.tick(self.now))
            for actor, (state, work) in list(self.alive.items()):
                if self.alive.get(actor) != (state, work) or state == "idle":
                    continue
                self.alive[actor] = ("idle", None)
                if state == "pending":
                    self.alive[actor] = ("starting", None)
                    self.obey(self.pool.placed(actor, self.now))
                elif state == "starting":
                    self.obey(self.pool.spawned(actor, self.now))
                elif state == "loading":
                    self.holds[actor] = work
                    self.obey(self.pool.loaded(actor, work, self.now))
                else:
                    self.obey(self.pool.replied(actor, work, self.now), work)
        assert not self.open


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
