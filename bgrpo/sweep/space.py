"""The points of a search space that are tried: a grid, random draws, or Optuna's suggestions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any, Protocol

from bgrpo.errors import UserError
from bgrpo.sweep.config import SpaceEntry, SweepConfig

Point = dict[str, Any]
"""Dotted key -> value."""

DISTINCT_ATTEMPTS = 100
OPTUNA_MISSING = "searcher=optuna needs Optuna, which is not installed: pip install 'bgrpo[sweep]'"


class PointSource(Protocol):
    """Where an arm's points come from."""

    def ask(self, index: int) -> Point:
        """Point number ``index``; asked for once each, in order."""

    def tell(self, index: int, point: Point, value: float | None) -> None:
        """How good a point was; None when it failed."""


class KnownPoints:
    """Points that are all known beforehand."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    def ask(self, index: int) -> Point:
        return self._points[index]

    def tell(self, index: int, point: Point, value: float | None) -> None:
        """They do not depend on it."""


class OptunaPoints:
    """Suggestions of Optuna's tree-structured Parzen estimator.

    Args:
        space: what is searched.
        seed: of the sampler; a search that goes on gives another one than it began with.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, space: dict[str, SpaceEntry], seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(OPTUNA_MISSING) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space = space
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {key: self._distribution(entry) for key, entry in space.items()}
        self._asked: dict[int, int] = {}

    def ask(self, index: int) -> Point:
        trial = self._study.ask(self._distributions)
        self._asked[index] = trial.number
        return {
            key: value if entry.values is None else entry.values[value]
            for key, entry, value in ((key, self._space[key], trial.params[key]) for key in self._space)
        }

    def tell(self, index: int, point: Point, value: float | None) -> None:
        state = self._optuna.trial.TrialState.COMPLETE if value is not None else self._optuna.trial.TrialState.FAIL
        if index in self._asked:
            self._study.tell(self._asked.pop(index), value, state=state)
            return
        params = {
            key: point[key] if entry.values is None else entry.values.index(point[key])
            for key, entry in self._space.items()
        }
        self._study.add_trial(
            self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=value, state=state)
        )

    def _distribution(self, entry: SpaceEntry) -> Any:
        distributions = self._optuna.distributions
        if entry.values is not None:
            return distributions.CategoricalDistribution(list(range(len(entry.values))))
        if entry.is_integer:
            return distributions.IntDistribution(int(entry.low), int(entry.high), log=entry.log)
        return distributions.FloatDistribution(entry.low, entry.high, log=entry.log)


def number_of_points(sweep: SweepConfig) -> int:
    """Points per arm, the same for all of them.

    Raises:
        UserError: it is not given, or arms cannot have equally many.
    """
    if not sweep.has_search:
        return 0
    if sweep.searcher != "grid":
        if sweep.trials_per_arm is None:
            raise UserError(f"searcher={sweep.searcher} needs trials_per_arm, for example trials_per_arm=8")
        return sweep.trials_per_arm
    sizes = {arm: grid_size(sweep.space_of(arm)) for arm in sweep.arms}
    text = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
    if sweep.trials_per_arm is None and len(set(sizes.values())) > 1:
        raise UserError(
            f"the arms' grids have different sizes ({text}), so the search would not be fair: give trials_per_arm="
            f"{min(sizes.values())} to try equally many points of each, or searcher=random"
        )
    count = sweep.trials_per_arm or min(sizes.values())
    if count > min(sizes.values()):
        raise UserError(f"trials_per_arm={count} is more than an arm's grid has ({text}): give fewer, or leave it out")
    return count


def known_points(sweep: SweepConfig, arm: str) -> list[Point]:
    """An arm's points of a grid or random search; a pure function of the configuration.

    The same draws serve every arm, so that arms with the same space try the same points.
    """
    space, count = sweep.space_of(arm), number_of_points(sweep)
    if sweep.searcher == "random":
        return _random_points(space, count, sweep.seed)
    points = [
        dict(zip(space, values, strict=True))
        for values in itertools.product(*(entry.values or [] for entry in space.values()))
    ]
    chosen = random.Random(f"{sweep.seed}:grid").sample(range(len(points)), count)
    return [points[index] for index in sorted(chosen)]


def point_source(sweep: SweepConfig, arm: str, known: int) -> PointSource:
    """Where an arm's points come from.

    Args:
        sweep: the sweep.
        arm: its name.
        known: points that were asked for before, in a sweep that goes on.
    """
    if sweep.searcher == "optuna" and sweep.has_search:
        seed = random.Random(f"{sweep.seed}:{arm}:{known}").randrange(2**31)
        return OptunaPoints(sweep.space_of(arm), seed)
    return KnownPoints(known_points(sweep, arm) if sweep.has_search else [])


def grid_size(space: dict[str, SpaceEntry]) -> int:
    """Points of a grid.

    Raises:
        UserError: a range has no grid.
    """
    for key, entry in space.items():
        if entry.values is None:
            raise UserError(f"searcher=grid: space {key} is a range; give values: […], or searcher=random")
    return math.prod(len(entry.values or []) for entry in space.values())


def corner_points(space: dict[str, SpaceEntry]) -> list[Point]:
    """Points that together hold every value and both ends of every range, to check the space with."""
    choices = {
        key: entry.values if entry.values is not None else [entry.min, entry.max] for key, entry in space.items()
    }
    longest = max((len(values) for values in choices.values()), default=0)
    return [{key: values[i % len(values)] for key, values in choices.items()} for i in range(longest)]


def _random_points(space: dict[str, SpaceEntry], count: int, seed: int) -> list[Point]:
    points: list[Point] = []
    for index in range(count):
        for attempt in range(DISTINCT_ATTEMPTS):
            point = {
                key: _draw(entry, random.Random(f"{seed}:{index}:{attempt}:{key}")) for key, entry in space.items()
            }
            if point not in points:
                break
        points.append(point)
    return points


def _draw(entry: SpaceEntry, stream: random.Random) -> Any:
    if entry.values is not None:
        return stream.choice(entry.values)
    if entry.log:
        drawn = math.exp(stream.uniform(math.log(entry.low), math.log(entry.high)))
    else:
        drawn = stream.uniform(entry.low - 0.5 * entry.is_integer, entry.high + 0.5 * entry.is_integer)
    bounded = min(max(drawn, entry.low), entry.high)
    return round(bounded) if entry.is_integer else min(max(float(f"{bounded:.4g}"), entry.low), entry.high)
