"""What `bgrpo chaos` sees of a node's object store, also while a worker of that node hangs."""

from __future__ import annotations

import gc
import os
import time
from signal import SIGKILL, SIGSTOP

import numpy as np
import pytest
import ray

from bgrpo.chaos.faults import hit
from bgrpo.chaos.run_view import object_store_in_use

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
SIZE = 40_000_000


@ray.remote(num_cpus=0)
class Worker:
    """Somebody to stop."""

    def pid(self) -> int:
        return os.getpid()


def in_use_until(low: int, high: int) -> int:
    """Bytes in use on this node as soon as they lie in these bounds, or after ten seconds."""
    node = ray.get_runtime_context().get_node_id()
    end = time.monotonic() + 10
    while True:
        used = object_store_in_use(node)
        assert used is not None
        if low <= used <= high or time.monotonic() > end:
            return used
        time.sleep(0.05)


def settled() -> int:
    """Bytes in use on this node once what earlier tests left has gone: the same for a second."""
    gc.collect()
    used = in_use_until(0, 1 << 40)
    for _ in range(20):
        time.sleep(1)
        last, used = used, in_use_until(0, 1 << 40)
        if last == used:
            break
    return used


def test_the_object_store_in_use_follows_what_is_referred_to_also_beside_a_worker_that_hangs() -> None:
    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    hit(pid, SIGSTOP)
    try:
        before = settled()
        kept = ray.put(np.zeros(SIZE, np.uint8))
        with_it = in_use_until(before + SIZE, before + 2 * SIZE)
        assert before + SIZE <= with_it <= before + 1.1 * SIZE
        del kept
        assert in_use_until(0, before + SIZE // 2) <= before + SIZE // 2
    finally:
        hit(pid, SIGKILL)


def test_a_node_that_is_not_known_has_no_object_store() -> None:
    assert object_store_in_use("f" * 56) is None
