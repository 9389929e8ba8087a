"""What a driver does while Ray Train workers work: start them, wait without blocking signals, surface what failed."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer
from rich.console import Console

from bgrpo.distributed.session.ray_errors import explain
from bgrpo.distributed.session.ray_session import Demand
from bgrpo.distributed.train.failures import final_failure, read_failures
from bgrpo.distributed.train.learner_watch import read_open_ends
from bgrpo.distributed.train.process_group import LearnerGroupConfig
from bgrpo.errors import DivergenceError, RunError, UserError
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT
from bgrpo.runs.run_folder import RunFolder

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **ALLOCATOR_ENVIRONMENT}
"""Threads that wait for each other sleep: where they spin on shared cores, a small update takes 20 times as long."""

STOP_FILE = "stop"
STOPPED_STATUS = 143  # as a shell reports a process ended by SIGTERM


def fit_workers(loop: Callable[[dict[str, Any]], None], job: object, demand: Demand, name: str, failures: int) -> None:
    """Run ``loop({"job": job})`` in Ray Train workers until it returns in all of them.

    Args:
        loop: the workers' function; called again from the start, in new processes, after one was lost.
        job: its argument.
        demand: how many workers, and what each reserves; with GPUs they talk through NCCL, else through gloo.
        name: of the run.
        failures: losses to survive.
    """
    with tempfile.TemporaryDirectory(prefix="bgrpo-train-") as storage:  # our checkpoints live in the run's folder
        TorchTrainer(
            loop,
            train_loop_config={"job": job},
            torch_config=LearnerGroupConfig(backend="nccl" if demand.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=demand.count, use_gpu=bool(demand.gpus), resources_per_worker=demand.reserved
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=ray.train.FailureConfig(max_failures=failures),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},  # type: ignore[call-arg]  # the typed one is V1's
            ),
        ).fit()


class Background:
    """One call in a thread, so that the main thread can show progress and take signals.

    Attributes:
        error: what the call raised, once it has ended.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """True once the call has ended; waits at most this long for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.error = error


def raise_failure(run_dir: Path, since: float, error: BaseException | None) -> None:
    """Raise what made the workers fail, if they did: the first cause, not the last consequence.

    Args:
        run_dir: folder of the run.
        since: seconds since 1970 when this attempt at the run began.
        error: what Ray Train raised.

    Raises:
        UserError: a failure that the user can mend; DivergenceError when training diverged.
        RunError: any other, see :func:`first_cause`.
    """
    final = final_failure(run_dir, since)
    if final is not None:
        raise (DivergenceError if final.diverged else UserError)(final.message)
    for failure in error.worker_failures.values() if isinstance(error, WorkerGroupError) else ():
        raised = getattr(failure, "_base_exc", failure)  # what Ray Train wrapped
        if isinstance(raised, UserError):
            raise raised
    if error is not None:
        cause = first_cause(run_dir, since, error)
        raise RunError(f"training failed; the last complete checkpoint is kept.\n{cause}") from error


def first_cause(run_dir: Path, since: float, error: BaseException) -> str:
    """Why learners failed: processes that were lost or crashed come first, then the first exception.

    When one learner's process is lost, the others often raise errors about their connections to it.

    Args:
        run_dir: folder of the run.
        since: seconds since 1970 when this attempt at the run began.
        error: what Ray Train raised.
    """
    ends, raised = read_open_ends(run_dir, since), read_failures(run_dir, since)
    places = {end.rank: end.where for end in ends}
    losses = _losses(error) | {end.rank: f"crashed in native code:\n{end.crash}" for end in ends if end.crash}
    parts = [f"{places.get(rank, f'learner {rank}')}: {losses[rank]}" for rank in sorted(losses)]
    if raised:
        parts.append(f"{'then' if parts else 'first failure'}, {raised[0].where}:\n{raised[0].trace.rstrip()}")
    if not losses:
        parts += [f"{end.where} left no exception: it was lost before, or ended with the others" for end in ends]
    return "\n".join(parts) or str(error)


def _losses(error: BaseException) -> dict[int, str]:
    """Rank -> how its process was lost, of those that Ray Train says were."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    return {rank: explain(cause) for rank, cause in causes.items() if isinstance(cause, RayError)}


def set_status(folder: RunFolder, status: str, console: Console) -> None:
    """Say in ``run.json`` how the run ended; a full disk must not hide why it did."""
    try:
        folder.update(status=status)
    except OSError as error:
        console.print(f"{folder.path / 'run.json'} still says running: {error.strerror}", highlight=False)


@contextmanager
def stop_on_signal(run_dir: Path, console: Console) -> Iterator[None]:
    """SIGTERM (``ray job stop``) and the first Ctrl-C ask the workers to save a checkpoint and end."""
    flag = run_dir / STOP_FILE
    flag.unlink(missing_ok=True)

    def ask(name: str) -> None:
        flag.touch()
        console.print(f"{name}: saving a checkpoint, then stopping", highlight=False)

    with first_signal(ask):
        yield


@contextmanager
def first_signal(ask: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C call ``ask`` with the signal's name; a second Ctrl-C interrupts at once.

    Enter it after ``ray.init``, which sets handlers of its own. Does nothing off the main thread.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ask(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
