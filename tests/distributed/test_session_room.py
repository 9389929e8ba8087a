"""A cluster that is too small is refused with the arithmetic, before anything starts."""

import pytest

from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.session import check_room, training_demand
from bgrpo.errors import UserError


def demand(*overrides: str) -> list:
    return training_demand(load_config(TrainConfig, None, overrides))


def test_the_default_run_fits_two_cores() -> None:
    check_room(demand(), {"CPU": 2.0})


def test_two_learners_and_two_actors_fit_two_cores() -> None:
    check_room(demand("learner.workers=2"), {"CPU": 2.0})


def test_missing_cpus_are_shown_with_their_sum() -> None:
    with pytest.raises(UserError) as caught:
        check_room(demand("rollout.actors=6", "rollout.cpus_per_actor=1"), {"CPU": 4.0})
    assert "rollout.actors 6 × 1" in str(caught.value)
    assert "= 6.5 CPU, the cluster has 4: 2.5 missing" in str(caught.value)


def test_missing_gpus_are_named() -> None:
    with pytest.raises(UserError, match=r"learner\.workers 2 × 1 = 2 GPU, the cluster has 0: 2 missing"):
        check_room(demand("learner.workers=2", "learner.gpus_per_worker=1"), {"CPU": 8.0})
