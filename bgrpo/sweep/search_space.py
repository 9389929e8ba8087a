"""The points of a search space that are tried: a grid, random draws, or Optuna's suggestions."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from bgrpo.errors import UserError
from bgrpo.sweep.sweep_config import SpaceEntry, SweepConfig

Point = dict[str, Any]
"""Dotted key -> value."""

DISTINCT_ATTEMPTS, MAX_GRID = 100, 10**5
OPTUNA_MISSING = "searcher=optuna needs Optuna, which is not installed: pip install 'bgrpo[sweep]'"


class Tried(NamedTuple):
    """A point that was handed out."""

    point: Point  # may hold keys outside the space
    is_over: bool  # all its trials have ended
    value: float | None = None  # mean over its trials; None when they failed


def number_of_points(sweep: SweepConfig) -> int:
    """Points per arm, the same for all of them.

    Raises:
        UserError: it is not given, or arms cannot have equally many, or Optuna is wanted and not installed.
    """
    if not sweep.has_search:
        return 0
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError(OPTUNA_MISSING)
    if sweep.searcher != "grid":
        if sweep.trials_per_arm is None:
            raise UserError(f"searcher={sweep.searcher} needs trials_per_arm, for example trials_per_arm=8")
        return sweep.trials_per_arm
    sizes = {arm: _grid_size(sweep.space_of(arm)) for arm in sweep.arms}
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
    values = itertools.product(*(entry.values or [] for entry in space.values()))
    points = [dict(zip(space, chosen, strict=True)) for chosen in values]
    kept = random.Random(f"{sweep.seed}:grid").sample(range(len(points)), count)
    return [points[index] for index in sorted(kept)]


def next_point(sweep: SweepConfig, arm: str, tried: Sequence[Tried]) -> Point:
    """The point after those that were ``tried``, in order; Optuna's depends on how good they were."""
    if sweep.searcher != "optuna":
        return known_points(sweep, arm)[len(tried)]
    seed = random.Random(f"{sweep.seed}:{arm}:{len(tried)}").randrange(2**31)
    return _suggested_point(sweep.space_of(arm), tried, seed)


def corner_points(space: dict[str, SpaceEntry]) -> list[Point]:
    """Points that together hold every value and both ends of every range, to check the space with."""
    choices = {
        key: entry.values if entry.values is not None else [entry.min, entry.max] for key, entry in space.items()
    }
    longest = max((len(values) for values in choices.values()), default=0)
    return [{key: values[i % len(values)] for key, values in choices.items()} for i in range(longest)]


def _grid_size(space: dict[str, SpaceEntry]) -> int:
    for key, entry in space.items():
        if entry.values is None:
            raise UserError(f"searcher=grid: space {key} is a range; give values: […], or searcher=random")
    size = math.prod(len(entry.values or []) for entry in space.values())
    if size > MAX_GRID:
        raise UserError(f"searcher=grid: the grid has {size} points, at most {MAX_GRID}; use searcher=random")
    return size


def _random_points(space: dict[str, SpaceEntry], count: int, seed: int) -> list[Point]:
    """Distinct where the space has so many; more of them change none of the first."""
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


def _suggested_point(space: dict[str, SpaceEntry], tried: Sequence[Tried], seed: int) -> Point:
    """A suggestion of Optuna's tree-structured Parzen estimator, which is told everything that was tried."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = optuna.trial.TrialState
    distributions = {key: _distribution(entry, optuna.distributions) for key, entry in space.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))
    for point, is_over, value in tried:
        params = {
            key: point[key] if entry.values is None else entry.values.index(point[key]) for key, entry in space.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=distributions,
                value=value if is_over else None,
                state=state.RUNNING if not is_over else state.FAIL if value is None else state.COMPLETE,
            )
        )
    chosen = study.ask(distributions).params
    return {key: chosen[key] if entry.values is None else entry.values[chosen[key]] for key, entry in space.items()}


def _distribution(entry: SpaceEntry, kinds: Any) -> Any:
    """Optuna's name of an entry; values by their number, since they may be lists."""
    if entry.values is not None:
        return kinds.CategoricalDistribution(list(range(len(entry.values))))
    if entry.is_integer:
        return kinds.IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return kinds.FloatDistribution(entry.low, entry.high, log=entry.log)
