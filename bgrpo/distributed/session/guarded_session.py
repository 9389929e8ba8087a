"""A Ray session that ends with its driver, whatever ends first and however."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray

from bgrpo.distributed.session.guardian import guardian, remove_train_folders
from bgrpo.distributed.session.head_watch import own_ray_watch
from bgrpo.distributed.session.ray_session import Demand, ray_session
from bgrpo.runs.stopping import StopSignals
from bgrpo.waits import waiting


@contextmanager
def guarded_ray_session(demands: list[Demand], signals: StopSignals) -> Iterator[None]:
    """:func:`bgrpo.distributed.session.ray_session.ray_session` for what runs for long.

    Nothing of a private Ray outlives this process for more than seconds, the loss of its raylet or GCS ends this
    process with one line, and signals mean what they meant before Ray started.
    """
    with ExitStack() as stack:
        remove_train_folders()
        already = ray.is_initialized()
        if not already:
            stack.enter_context(guardian())
        with waiting("Ray" if already else "a Ray of this run's own to start, or the cluster to answer"):
            stack.enter_context(ray_session(demands))
        if not already:
            stack.enter_context(own_ray_watch())
            signals.again()
        yield
