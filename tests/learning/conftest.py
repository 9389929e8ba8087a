"""What tests of learners in processes of their own share."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServerContext]:
    """Processes forked from a server that has loaded the libraries once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["learner_worker"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11's server preloads from PYTHONPATH only
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        first = context.Process(target=int)  # starts the server
        first.start()
        first.join()
        yield context
