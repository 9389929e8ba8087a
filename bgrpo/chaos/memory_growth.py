"""Whether memory stays flat: a robust slope over many processes, each of which lives only for a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from statistics import median

WARM_UP_S = 300.0
"""A heap that meets batches of all sizes grows to what the largest need: most of it in this time."""

FLAT_BYTES_PER_MINUTE = 1024**2
LEAST_SPAN_S = 60.0
MOST_SAMPLES_PER_LIFE = 200


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory of one process, or of one node's object store, at one time."""

    role: str  #: ``driver``, ``learner``, …
    life: str  #: which process of this role; never used for another one.
    at: float  #: seconds, on any clock.
    value: int  #: bytes.


@dataclass(frozen=True, slots=True)
class MemoryTrend:
    """How the memory of one role developed."""

    role: str  #: of the processes.
    lives: int  #: processes that were long enough alive to count.
    typical: float  #: median of all samples after the warm-up, in bytes; 0 when there is none.
    slope: float | None  #: bytes per minute, Theil–Sen; None when no process lived long enough after its warm-up.

    @property
    def verdict(self) -> str:
        """``flat`` below :data:`FLAT_BYTES_PER_MINUTE`, ``growing`` from there on, ``too short`` without a slope."""
        if self.slope is None:
            return "too short"
        return "flat" if self.slope < FLAT_BYTES_PER_MINUTE else "growing"


def memory_trends(samples: Iterable[MemorySample]) -> list[MemoryTrend]:
    """One trend per role, in the order in which roles first appear.

    The slope is the median of the slopes between all pairs of samples of the same life (Theil–Sen), so that neither a
    replaced process nor an outlier counts as growth. The first :data:`WARM_UP_S` seconds of a life are left out, and
    lives that are shorter than :data:`LEAST_SPAN_S` after that. At most :data:`MOST_SAMPLES_PER_LIFE` samples of a
    life are used, evenly spread.
    """
    roles: dict[str, dict[str, list[MemorySample]]] = defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda sample: sample.at):
        roles[sample.role][sample.life].append(sample)
    return [_trend(role, list(lives.values())) for role, lives in roles.items()]


def _trend(role: str, lives: list[list[MemorySample]]) -> MemoryTrend:
    warm = [[sample for sample in life if sample.at - life[0].at >= WARM_UP_S] for life in lives]
    long = [
        life[:: -(-len(life) // MOST_SAMPLES_PER_LIFE)]
        for life in warm
        if life and life[-1].at - life[0].at >= LEAST_SPAN_S
    ]
    slopes = [
        60 * (after.value - before.value) / (after.at - before.at)
        for life in long
        for before, after in combinations(life, 2)
        if after.at > before.at
    ]
    values = [sample.value for life in long for sample in life]
    return MemoryTrend(role, len(long), median(values) if values else 0.0, median(slopes) if slopes else None)
