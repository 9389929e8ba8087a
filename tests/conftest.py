"""What several test files share: the folder of real data, and one Ray session for all tests that need Ray."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bgrpo import waits
from bgrpo.runs.environment import LIGHT_ENVIRONMENT

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(LIGHT_ENVIRONMENT)  # as in commands

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every `make test`, so that a change is judged by what it changed; `make test-all` looks for new
# ones. No deadline: a busy machine makes any example slow now and then.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("same")

waits.SILENT_S = 3600.0  # what is slow on a busy machine is not told among the lines that tests look at

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default makes every report() cost more than a second
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_metrics_report_interval_ms": "1000",  # the default is 10 s
    "RAY_worker_niceness": "0",  # the default is 15, which is next to nothing beside any other process that works
}


def pytest_configure(config: pytest.Config) -> None:
    """Build the decoding kernel once, before several processes of pytest-xdist would each build it."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        from bgrpo.decoding.compiled import compiled_kernel

        compiled_kernel()


def pytest_collection_finish() -> None:
    """Libraries and tests stay: no collection of garbage need look at them again. Every trainer begins with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def frozen_libraries() -> Iterator[None]:
    """So do the libraries that the files before have imported."""
    gc.freeze()
    yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Commands set PyTorch's number of threads for their process; the next test has one again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files beside the repository; tests that ask for it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real data files are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A private Ray on this machine (8 logical CPUs whatever the hardware), started once for the whole test session."""
    from bgrpo.cluster.private_ray import private_ray

    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Workers import helper modules of the tests by name.
    paths = [str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with private_ray(num_cpus=8, num_gpus=0, object_store_memory=300 * 1024 * 1024):
        yield
