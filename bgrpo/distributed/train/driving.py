"""What a driver does while Ray Train workers work: start them, wait without blocking signals, surface what failed."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController

from bgrpo.distributed.session.guardian import TRAIN_FOLDER
from bgrpo.distributed.session.ray_errors import explain
from bgrpo.distributed.session.ray_session import Demand
from bgrpo.distributed.train.failures import final_failure, read_failures
from bgrpo.distributed.train.learner_watch import read_open_ends
from bgrpo.distributed.train.process_group import LearnerGroupConfig
from bgrpo.errors import DivergenceError, LostRunError, RunError, UserError
from bgrpo.files import FULL, NO_ROOM
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT, LIGHT_ENVIRONMENT

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **ALLOCATOR_ENVIRONMENT, **LIGHT_ENVIRONMENT}
"""Threads that wait for each other sleep: where they spin on shared cores, a small update takes 20 times as long.
The rest: :mod:`bgrpo.runs.environment`."""

SILENCE_S = 30.0
"""``watchdog.silence_s`` of runs that have no such setting."""

ABORT_S = 5.0
"""What the controller may take to end the workers, before it is ended itself: they go with it."""

SILENCE_VARIABLE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"


class WorkersRun:
    """One call of a loop in Ray Train workers, which one thread makes and another may end.

    Args:
        loop: the workers' function; called again from the start, in new processes, after one was lost.
        job: its argument, as ``loop({"job": job})``.
        demand: how many workers, and what each reserves; with GPUs they talk through NCCL, else through gloo.
        name: of the run.
        failures: losses to survive.
        silence_s: a worker whose process has not answered for so long (stopped, say) is lost too. Ray Train asks all
            the time, and a thread of the worker answers while another one trains.
    """

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], None],
        job: object,
        demand: Demand,
        name: str,
        failures: int,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._loop, self._job, self._demand, self._name = loop, job, demand, name
        self._failures, self._silence_s = failures, silence_s
        self._controller = _Controller()

    def fit(self) -> None:
        """Until the loop has returned in all workers, or another thread has ended it."""
        os.environ[SILENCE_VARIABLE] = str(self._silence_s)
        ours, demand = f"{TRAIN_FOLDER}{os.getpid()}-", self._demand
        with tempfile.TemporaryDirectory(prefix=ours, ignore_cleanup_errors=True) as storage:  # not for our checkpoints
            trainer = _Trainer(
                self._loop,
                train_loop_config={"job": self._job},
                torch_config=LearnerGroupConfig(backend="nccl" if demand.gpus else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=demand.count, use_gpu=bool(demand.gpus), resources_per_worker=demand.reserved
                ),
                run_config=ray.train.RunConfig(
                    name=self._name,
                    storage_path=storage,
                    failure_config=ray.train.FailureConfig(max_failures=self._failures),
                    worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},  # type: ignore[call-arg]  # the typed one is V1's
                ),
            )
            trainer.begun = self._controller
            trainer.fit()

    def end(self) -> None:
        """End the workers, wherever they are, and with them :meth:`fit`, which raises."""
        self._controller.end()


class _Controller:
    """The process of Ray Train that starts and watches the workers: who has it may end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: Any = None
        self._ended = False

    def begin(self, start: Callable[[], Any]) -> Any:
        """Start it, unless it is to be ended already."""
        with self._lock:
            if self._ended:
                raise RunError("the learners were ended before they began")
            self._handle = start()
            return self._handle

    def end(self) -> None:
        with self._lock:
            self._ended = True
        if self._handle is not None:
            with suppress(RayError):  # it ends, and so does the call
                ray.get(self._handle.abort.remote(), timeout=ABORT_S)
            ray.kill(self._handle)


class _Trainer(TorchTrainer):
    """Ray Train's trainer, but for the controller's handle, and without a process for data sets, which we have none of.

    Ray's own can be aborted by a signal to the main thread alone. One that is left waiting for its controller in a
    thread reads freed memory when Ray is shut down. The process that is left out would take 180 MB.

    Attributes:
        begun: gets the controller.
    """

    begun: _Controller

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]  # the typed one is V1's
        return [callback for callback in made if not isinstance(callback, DatasetsCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}  # type: ignore[attr-defined]
        environment = {"env_vars": get_env_vars_to_propagate()}
        actor: Any = ray.remote(num_cpus=0, label_selector=here, runtime_env=environment)(TrainController)
        controller = self.begun.begin(lambda: actor.remote(**parts))
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


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
        if isinstance(raised, UserError | LostRunError):
            raise raised
        if isinstance(raised, OSError) and raised.errno in FULL:
            raise RunError(NO_ROOM.format(raised)) from error
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
    controller = getattr(error, "controller_failure", error)
    if isinstance(controller, RayError):  # who also watches the learners, so that nothing is told of their ends
        parts.append(f"Ray Train's controller: {explain(controller)}")
    if not losses:
        parts += [f"{end.where} left no exception: it was lost before, or ended with the others" for end in ends]
    return "\n".join(parts) or str(error)


def _losses(error: BaseException) -> dict[int, str]:
    """Rank -> how its process was lost, of those that Ray Train says were."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    return {rank: explain(cause) for rank, cause in causes.items() if isinstance(cause, RayError)}
