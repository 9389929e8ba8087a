"""Memory trends: planted growth is found, through noise, outliers and replaced processes; none is invented."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import theilslopes

from bgrpo.chaos.memory_growth import FLAT_BYTES_PER_MINUTE, LEAST_SPAN_S, WARM_UP_S, MemorySample, memory_trends

MIB = 1024**2


def life(name: str, start: float, seconds: float, growth: float, base: float = 200 * MIB, noise: float = 0.0):
    """One sample every 5 s, until ``seconds`` after the warm-up, in which there is a steep rise; ``growth`` is in bytes
    per minute."""
    draw = random.Random(name)
    for step in range(int((WARM_UP_S + seconds) / 5) + 1):
        age = 5.0 * step
        warming = -50 * MIB * max(0.0, 1 - age / WARM_UP_S)
        value = base + warming + growth * age / 60 + noise * draw.uniform(-1, 1)
        yield MemorySample("learners", name, start + age, int(value))


@given(st.floats(-20, 20), st.integers(1, 6))
def test_the_slope_is_the_planted_one_whatever_the_number_of_lives(growth_mib: float, lives: int) -> None:
    samples = [
        s for i in range(lives) for s in life(str(i), 200.0 * i, 90, growth_mib * MIB, base=(100 + 90 * i) * MIB)
    ]
    (trend,) = memory_trends(samples)
    assert trend.slope == pytest.approx(growth_mib * MIB, abs=100)
    assert trend.lives == lives
    assert trend.verdict == ("growing" if growth_mib * MIB > FLAT_BYTES_PER_MINUTE else "flat") or growth_mib == 1


def test_one_life_has_the_slope_that_scipy_finds() -> None:
    samples = list(life("a", 0.0, 240, 3 * MIB, noise=5 * MIB))
    warm = [sample for sample in samples if sample.at >= WARM_UP_S]
    expected = theilslopes([s.value for s in warm], [s.at for s in warm]).slope * 60
    assert memory_trends(samples)[0].slope == pytest.approx(expected, rel=1e-9)


def test_outliers_and_noise_do_not_count_as_growth() -> None:
    samples = list(life("a", 0.0, 540, 0.0, noise=0.2 * MIB))
    spoilt = [s if i % 6 else MemorySample(s.role, s.life, s.at, s.value * 4) for i, s in enumerate(samples)]
    assert memory_trends(spoilt)[0].verdict == "flat"


def test_a_leak_of_three_megabytes_a_minute_is_seen_through_replacements() -> None:
    samples = [s for i in range(8) for s in life(str(i), 150.0 * i, 80, 3 * MIB, noise=0.5 * MIB)]
    assert memory_trends(samples)[0].verdict == "growing"


def test_short_lives_say_nothing() -> None:
    samples = [s for i in range(9) for s in life(str(i), 150.0 * i, LEAST_SPAN_S - 5, 50 * MIB)]
    (trend,) = memory_trends(samples)
    assert (trend.verdict, trend.slope, trend.lives) == ("too short", None, 0)


def test_roles_are_kept_apart() -> None:
    leak = list(life("a", 0.0, 140, 5 * MIB))
    calm = [MemorySample("driver", "d", sample.at, 7 * MIB) for sample in leak]
    assert [(t.role, t.verdict) for t in memory_trends([*leak, *calm])] == [("learners", "growing"), ("driver", "flat")]
    assert memory_trends([]) == []
