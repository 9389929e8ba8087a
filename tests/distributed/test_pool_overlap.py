"""Two versions of the weights in one pool, as when a step is decoded while the one before is learned."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import Command, Dispatch, Load

ACTORS, REQUESTS, STEPS = 3, 8, 12


class Playground:
    """Actors that take a random time for everything they are told; counts the weights that each of them loads."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.state = PoolState(ACTORS)
        self.loads: Counter[tuple[int, object]] = Counter()
        self.answered: set[int] = set()
        self._ends: list[tuple[float, Command]] = []
        self.obey(self.state.start(0.0))
        for actor in range(ACTORS):
            self.obey(self.state.placed(actor, 0.0) + self.state.spawned(actor, 0.0))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Load):
                self.loads[command.actor, command.weights] += 1
                self._ends.append((self.now + self.rng.uniform(0.01, 0.3), command))
            elif isinstance(command, Dispatch):
                self._ends.append((self.now + self.rng.uniform(0.5, 2.0), command))

    def submit(self, step: int, version: int) -> list[int]:
        numbers = [step * REQUESTS + position for position in range(REQUESTS)]
        for number in numbers:
            self.obey(self.state.submit(number, version, 100.0, self.now))
        return numbers

    def advance(self) -> None:
        """To the next end of something."""
        self._ends.sort(key=lambda end: end[0])
        self.now, command = self._ends.pop(0)
        if isinstance(command, Load):
            self.obey(self.state.loaded(command.actor, command.weights, self.now))
        elif isinstance(command, Dispatch):
            self.answered.add(command.request)
            self.obey(self.state.replied(command.actor, command.request, self.now))


@pytest.mark.parametrize("seed", range(5))
def test_every_actor_loads_every_version_once(seed: int) -> None:
    """Step t + 1 is decoded by version t; version t + 1 is published at some time meanwhile."""
    play = Playground(seed)
    play.obey(play.state.prefer(0, 0.0))
    for step in range(1, STEPS):
        waiting = set(play.submit(step, version=step - 1))
        published_after = play.rng.randint(0, REQUESTS)
        while not waiting <= play.answered:
            if len(waiting & play.answered) == published_after:
                play.obey(play.state.prefer(step, play.now))
            play.advance()
        play.obey(play.state.prefer(step, play.now))
    assert set(play.loads.values()) == {1}
    assert len(play.loads) > ACTORS * (STEPS - 2)
