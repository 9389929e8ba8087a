"""The size of a pool under loads as training makes them, and under any load at all."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from bgrpo.distributed.pool.pool_scaling import PoolScaler, ScalingDecision, ScalingLimits

LIMITS = ScalingLimits(least=1, most=6, up_s=10.0, down_s=120.0)
TICK_S = 1.0


class Play:
    """A pool whose actors take ``request_s`` for a request and ``start_s`` to start, and a load in bursts."""

    def __init__(self, size: int, request_s: float, start_s: float = 0.0, limits: ScalingLimits = LIMITS) -> None:
        self.now = 0.0
        self.size = size
        self.scaler = PoolScaler(limits, 0.0)
        self.request_s = request_s
        self.start_s = start_s
        self.free_at = [0.0] * size
        self.ends: list[float] = []
        self.queued = 0
        self.decisions: list[tuple[float, int]] = []

    def burst(self, requests: int) -> None:
        self.queued += requests
        self.observe()

    def observe(self) -> None:
        self.ends = [end for end in self.ends if end > self.now]
        up = [i for i, free in enumerate(self.free_at) if free <= self.now]
        while self.queued and up:
            self.queued -= 1
            self.free_at[up.pop()] = self.now + self.request_s
            self.ends.append(self.now + self.request_s)
        starting = self.size - len(self.ends) - len(up)
        self.scaler.observe(self.now, len(self.ends) + self.queued, self.queued, max(0, starting))

    def until(self, time: float) -> None:
        while self.now < time:
            self.now += TICK_S
            self.observe()
            decision = self.scaler.decide(self.now, self.size)
            if decision is not None:
                self.resize(decision)

    def resize(self, decision: ScalingDecision) -> None:
        self.decisions.append((self.now, decision.size))
        if decision.size > self.size:
            self.free_at += [self.now + self.start_s] * (decision.size - self.size)
        else:
            self.free_at = sorted(self.free_at, reverse=True)[: decision.size]
        self.size = decision.size

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.decisions]


def steps(play: Play, count: int, requests: int, learn_s: float) -> None:
    """Training steps: a burst, its answers, then the learner learns while nobody asks for anything."""
    for _ in range(count):
        play.burst(requests)
        while play.queued or play.ends:
            play.until(play.now + TICK_S)
        play.until(play.now + learn_s)


def test_a_long_queue_grows_the_pool_one_by_one_to_the_most() -> None:
    play = Play(1, request_s=1000.0, start_s=1e6)
    play.burst(20)
    play.until(200.0)
    assert [(time, size) for time, size in play.decisions] == [(10.0 * i, 1 + i) for i in range(1, 6)]


def test_no_more_actors_are_asked_for_than_requests_wait() -> None:
    play = Play(2, request_s=1000.0, start_s=1e6)
    play.burst(4)
    play.until(1000.0)
    assert play.size == 4


def test_a_gap_for_learning_does_not_shrink_the_pool() -> None:
    play = Play(4, request_s=5.0)
    steps(play, count=30, requests=4, learn_s=100.0)
    assert play.decisions == []


def test_short_waits_of_many_steps_add_up() -> None:
    """Two of four requests wait 4 s in each step of 18 s: no wait is as long as the limit, but their sum is."""
    play = Play(2, request_s=4.0)
    steps(play, count=60, requests=4, learn_s=10.0)
    assert play.sizes == [3, 4], "then as many actors as requests"


def test_rare_short_waits_are_no_reason() -> None:
    """4 s in 104."""
    play = Play(2, request_s=4.0)
    steps(play, count=40, requests=3, learn_s=96.0)
    assert play.decisions == []


def test_a_smaller_load_shrinks_the_pool_to_what_it_needs_in_one_decision() -> None:
    play = Play(6, request_s=5.0)
    steps(play, count=10, requests=6, learn_s=20.0)
    steps(play, count=20, requests=2, learn_s=20.0)
    assert play.sizes == [2]


def test_an_abandoned_pool_keeps_the_least() -> None:
    play = Play(5, request_s=1.0, limits=ScalingLimits(least=2, most=6, up_s=10.0, down_s=120.0))
    play.until(119.0)
    assert play.decisions == []
    play.until(10_000.0)
    assert play.decisions == [(120.0, 2)]


def test_reasons_say_what_was_seen() -> None:
    scaler = PoolScaler(LIMITS, 0.0)
    scaler.observe(0.0, open_requests=5, queued=4, about_to_serve=0)
    assert scaler.decide(12.0, 1) == ScalingDecision(
        2, "requests waited for 12.0 s of the last 12.0 s (limit 10 s), 4 wait now"
    )
    scaler.observe(13.0, open_requests=1, queued=0, about_to_serve=0)
    assert scaler.decide(140.0, 2) == ScalingDecision(1, "at most 1 requests were open at once for 120 s")
    scaler.observe(140.0, open_requests=0, queued=0, about_to_serve=0)
    assert scaler.decide(300.0, 2) == ScalingDecision(1, "no request came for 120 s")


def test_a_moment_between_two_decisions_counts() -> None:
    scaler = PoolScaler(LIMITS, 0.0)
    scaler.observe(50.0, open_requests=3, queued=0, about_to_serve=0)
    scaler.observe(50.0, open_requests=0, queued=0, about_to_serve=0)
    assert scaler.decide(169.0, 3) is None
    assert scaler.decide(171.0, 3) is not None


Event = tuple[float, int, int, int]


def events() -> st.SearchStrategy[list[Event]]:
    """(seconds since the event before, open requests, how many of them are queued, actors about to serve)."""
    seconds = st.floats(0.0, 30.0) | st.sampled_from([0.0, 0.1, 119.0, 121.0])
    return st.lists(st.tuples(seconds, st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), max_size=60)


def play_events(limits: ScalingLimits, size: int, happenings: Iterable[Event]) -> None:
    """Every promise of the module, checked against the whole history."""
    scaler, now, changed = PoolScaler(limits, 0.0), 0.0, 0.0
    history: list[tuple[float, float, int, bool]] = []  # from, to, open, short
    current = (0, False)
    for seconds, opened, queued, serving in happenings:
        history.append((now, now + seconds, *current))
        now += seconds
        decision = scaler.decide(now, size)
        if decision is not None:
            begin = now - limits.down_s
            assert limits.least <= decision.size <= limits.most
            if decision.size > size:
                since = max(changed, begin)
                waited = sum(to - max(start, since) for start, to, _, short in history if short and to > since)
                assert decision.size == size + 1 and current[1] and waited >= limits.up_s - 1e-6
            else:
                peak = max(count for _, to, count, _ in history if to > begin)
                assert decision.size == max(limits.least, peak) < size
                assert now - changed >= limits.down_s
            changed, size = now, decision.size
        current = (opened, min(queued, opened) > serving)
        scaler.observe(now, opened, min(queued, opened), serving)


@settings(max_examples=100, deadline=None)
@given(least=st.integers(1, 4), more=st.integers(0, 4), start=st.integers(0, 4), happenings=events())
def test_promises_hold_under_any_load(least: int, more: int, start: int, happenings: list[Event]) -> None:
    limits = ScalingLimits(least, least + more, up_s=10.0, down_s=120.0)
    play_events(limits, least + min(start, more), happenings)


@settings(max_examples=20, deadline=None)
@example(size=1, requests=8, request_s=17.0, learn_s=69.0, start_s=58.0)  # all is served before the new actors are up
@given(
    size=st.integers(1, 6),
    requests=st.integers(1, 12),
    request_s=st.floats(0.5, 30.0),
    learn_s=st.floats(0.0, 85.0),
    start_s=st.floats(0.0, 60.0),
)
def test_a_repeated_step_never_makes_the_size_go_back_and_forth(
    size: int, requests: int, request_s: float, learn_s: float, start_s: float
) -> None:
    play = Play(size, request_s, start_s)
    steps(play, count=8, requests=requests, learn_s=learn_s)
    grows = play.sizes == sorted(play.sizes) and all(after > size for after in play.sizes)
    shrinks = len(play.sizes) == 1 and play.sizes[0] < size
    assert not play.sizes or grows or shrinks, play.decisions


def test_a_shrunk_pool_grows_again_when_the_load_does() -> None:
    play = Play(4, request_s=5.0)
    steps(play, count=10, requests=1, learn_s=20.0)
    assert play.sizes == [1]
    steps(play, count=20, requests=4, learn_s=10.0)
    assert play.sizes == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_fixed_pool_decides_nothing(size: int) -> None:
    limits = ScalingLimits(size, size, up_s=10.0, down_s=120.0)
    play = Play(size, request_s=1000.0, limits=limits)
    play.burst(20)
    play.until(300.0)
    play.queued, play.free_at = 0, [0.0] * size
    play.until(600.0)
    assert play.decisions == []
