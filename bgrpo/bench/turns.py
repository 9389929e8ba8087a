"""Timing in turns: everything that is compared is timed in one process, one after the other, again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


class DisagreementError(Exception):
    """What would be compared computes something else, so it is not timed; the message says which, where and what."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement."""

    seconds: float  # of wall clock
    cpu_seconds: float  # of processor time of the whole process; less than ``seconds`` where something else ran

    def __add__(self, other: Turn) -> Turn:
        return Turn(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __mul__(self, times: float) -> Turn:
        return Turn(self.seconds * times, self.cpu_seconds * times)


def timed(call: Callable[[], object]) -> Turn:
    """Time one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Turn(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(
    measure: Mapping[str, Callable[[], Turn]],
    rounds: int,
    seconds: float = math.inf,
    on_turn: Callable[[str], None] = lambda name: None,
) -> dict[str, list[Turn]]:
    """Let everyone take a turn per round. Each round starts with another one: a change of speed meets all alike.

    Args:
        measure: by name, what makes one measurement.
        rounds: at most so many turns each; everyone gets one.
        seconds: who would spend more than this in all leaves out the later rounds.
        on_turn: told the name after each turn, taken or left out.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in measure}
    names = list(measure)
    for round_ in range(rounds):
        start = round_ % len(names) if names else 0
        for name in names[start:] + names[:start]:
            spent = sum(turn.seconds for turn in turns[name])
            if not turns[name] or spent + median(turn.seconds for turn in turns[name]) <= seconds:
                turns[name].append(measure[name]())
            on_turn(name)
    return turns
