"""Learners that are ended from another thread than the one that waits for them, before Ray is shut down under it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bgrpo.chaos.faults import wait_until
from bgrpo.distributed.session.ray_session import Demand
from bgrpo.distributed.train.driving import WorkersRun
from bgrpo.training.run_attempt import Background

pytestmark = pytest.mark.ray
DEMAND = Demand("learner.workers", 2, 0.5, 0.0)


def endless_loop() -> Callable[[dict[str, Any]], None]:
    """Made here, so that its code goes along to processes that cannot import this module."""

    def loop(settings: dict[str, Any]) -> None:
        (settings["job"] / str(os.getpid())).touch()
        time.sleep(3600)

    return loop


def learners(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(int(path.name)) for path in folder.iterdir() if psutil.pid_exists(int(path.name))]


@pytest.mark.usefixtures("ray_session")
def test_learners_end_with_the_block_that_waits_for_them(tmp_path: Path) -> None:
    run = WorkersRun(endless_loop(), tmp_path, DEMAND, "ended", 3)
    with Background(run.fit, run.end) as call:
        wait_until(lambda: len(learners(tmp_path)) == 2 or call.wait(0), "two learners", 240)
        assert call.error is None
    assert call.wait(0), "the thread still waits for the learners"
    assert call.error is not None, "it was told why"
    wait_until(lambda: not learners(tmp_path), "the end of the learners", 200)
    assert len(list(tmp_path.iterdir())) == 2, "none was started again"


@pytest.mark.usefixtures("ray_session")
def test_learners_that_are_ended_before_they_begin_never_do(tmp_path: Path) -> None:
    run = WorkersRun(endless_loop(), tmp_path, DEMAND, "ended", 3)
    run.end()
    call = Background(run.fit)
    assert call.wait(240)
    assert "before they began" in str(call.error)
    assert not list(tmp_path.iterdir())
