"""Where a run's learners are, written into the run's folder: who wants to look at one, or to end it, finds it there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bgrpo.distributed.pool.actor_pool import Place
from bgrpo.files import parse_object, read_file, write_atomically

FOLDER = "processes"


@dataclass(frozen=True, slots=True)
class LearnerPlace:
    """One learner's process.

    Attributes:
        rank: of the learner.
        pid: of its process.
        node: Ray's id of its node.
        started: when the process began, in seconds since 1970; with ``pid`` it is never another process.
        step: training step that it went on from.
    """

    rank: int
    pid: int
    node: str
    started: float
    step: int


def record_learner(run_dir: Path, rank: int, step: int) -> None:
    """Say where this learner is; replaces what its predecessor said.

    Args:
        run_dir: folder of the run.
        rank: of this learner.
        step: training step that it goes on from.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    here = Place.here()
    place = LearnerPlace(rank, here.pid, here.node, psutil.Process().create_time(), step)
    write_atomically(folder / f"learner-{rank}.json", json.dumps(asdict(place)))


def read_learners(run_dir: Path) -> list[LearnerPlace]:
    """The learners that :func:`record_learner` told of, by rank; they may have ended since."""
    places = [LearnerPlace(**parse_object(read_file(path))) for path in (run_dir / FOLDER).glob("learner-*.json")]
    return sorted(places, key=lambda place: place.rank)
