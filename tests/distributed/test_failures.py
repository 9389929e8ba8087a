"""The first cause of a failed run is kept with its traceback, and told apart from what may be tried again."""

import errno
import json
import time
from functools import partial
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError

from bgrpo.distributed.train.driving import raise_failure
from bgrpo.distributed.train.failures import final_failure, read_failures, record_failure
from bgrpo.errors import DivergenceError, RunError, UserError
from bgrpo.training.in_process import LocalWorkers


def failing(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_failures_are_read_back_in_order_with_their_place(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(ConnectionError("peer closed")), rank=1)
    record_failure(tmp_path, failing(UserError("the disk is full")), rank=0)
    first, second = read_failures(tmp_path)
    assert first.message == "ConnectionError: peer closed"
    assert "learner 1" in first.where
    assert "in failing" in first.trace
    assert not first.final
    assert second.final
    assert second.message == "the disk is full"


def test_only_a_users_error_ends_the_run(tmp_path: Path) -> None:
    assert final_failure(tmp_path, since=0.0) is None
    record_failure(tmp_path, failing(ConnectionError("peer closed")), rank=1)
    assert final_failure(tmp_path, since=0.0) is None
    record_failure(tmp_path, failing(UserError("the disk is full")), rank=0)
    found = final_failure(tmp_path, since=0.0)
    assert found is not None
    assert found.message == "the disk is full"


def test_a_divergence_is_raised_as_one(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(DivergenceError("training diverged at step 3")), rank=0)
    with pytest.raises(DivergenceError, match=r"^training diverged at step 3$"):
        raise_failure(tmp_path, 0.0, None)


def test_failures_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(UserError("the disk is full")), rank=0)
    recorded = read_failures(tmp_path)[0].when
    assert final_failure(tmp_path, since=recorded + 1.0) is None


def test_a_failure_that_a_full_disk_cut_off_is_not_read(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(UserError("the disk is full")), rank=0)
    with (tmp_path / "failures.jsonl").open("a") as file:
        file.write('{"when": 1.0, "fin')
    assert [failure.message for failure in read_failures(tmp_path)] == ["the disk is full"]


def test_a_failure_that_cannot_be_recorded_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_failure(tmp_path / "absent", failing(UserError("the disk is full")), rank=0)
    assert "the disk is full" in caplog.text


def test_a_users_error_that_only_ray_carried_is_raised(tmp_path: Path) -> None:
    lost = WorkerGroupError("workers failed", {0: ConnectionError("peer closed"), 1: UserError("the disk is full")})
    with pytest.raises(UserError, match="the disk is full"):
        raise_failure(tmp_path, 0.0, lost)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_on_ray_and_in_this_process(number: int, tmp_path: Path) -> None:
    full = OSError(number, "no room", "metrics.jsonl")
    for raises in (partial(raise_failure, tmp_path, 0.0, WorkerGroupError("failed", {0: full})),
                   partial(LocalWorkers.__new__(LocalWorkers).raise_failure, full)):  # fmt: skip
        with pytest.raises(RunError, match=r"^what is to be written has no room [^\n]*metrics.jsonl[^\n]*$"):
            raises()


def test_the_first_cause_is_raised_with_its_traceback(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(ZeroDivisionError("first")), rank=1)
    record_failure(tmp_path, failing(ConnectionError("second")), rank=0)
    with pytest.raises(RunError, match=r"(?s)first failure, learner 1 .*ZeroDivisionError: first"):
        raise_failure(tmp_path, 0.0, WorkerGroupError("workers failed", {0: ConnectionError("second")}))


class HealthCheckFailure(Exception):
    """As Ray Train wraps the loss of a worker."""

    def __init__(self, loss: Exception) -> None:
        super().__init__("A worker health check failed.")
        self.health_check_failure = loss


class Died(ActorDiedError):
    """Says what Ray says of a process that was killed."""

    def __str__(self) -> str:
        return (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 6212\n"
            "\tnamespace: 05\n\tip: 192.0.2.2\nThe actor is dead because its worker process has died. Worker exit "
            "type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. "
            "Some common causes include: (1) the process was killed by the OOM killer"
        )


def begun(run_dir: Path, rank: int, crash: str = "") -> None:
    """A learner's process that has not left its loop."""
    place = {"where": f"learner {rank} (process 62 on node-{rank})", "when": time.time()}
    (run_dir / "learners").mkdir(exist_ok=True)
    (run_dir / "learners" / f"{rank}.crash").write_text(json.dumps(place) + "\n" + crash)


def told(run_dir: Path, failures: dict[int, Exception]) -> list[str]:
    with pytest.raises(RunError) as caught:
        raise_failure(run_dir, 0.0, WorkerGroupError("workers failed", failures))
    return str(caught.value).splitlines()[1:]


def test_a_lost_process_comes_before_the_errors_that_it_caused(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    record_failure(tmp_path, failing(ConnectionError("peer closed")), rank=1)
    lines = told(tmp_path, {0: HealthCheckFailure(Died()), 1: ConnectionError("peer closed")})
    assert lines[0].startswith(
        "learner 0 (process 62 on node-0): its process (pid 6212 at 192.0.2.2) ended without an exception: it was"
    )
    assert lines[1].startswith("then, learner 1 (process ")
    assert lines[-1] == "ConnectionError: peer closed"


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_loss_of_the_controller_is_told_with_its_cause(tmp_path: Path, wrapped: bool) -> None:
    """As where Ray's memory monitor kills the learners and it: nobody is left to say how the learners ended."""
    begun(tmp_path, 0)
    killed = OutOfMemoryError("Memory on the node was 22.9GB / 24GB, which exceeds the threshold of 0.95")
    with pytest.raises(RunError) as caught:
        raise_failure(tmp_path, 0.0, ControllerError(killed) if wrapped else killed)
    lines = str(caught.value).splitlines()[1:]
    assert lines[0] == f"Ray Train's controller: {killed}"
    assert "learner 0 (process 62 on node-0) left no exception" in lines[1]
    with pytest.raises(RunError, match=r"controller: its process \(pid 6212 at 192\.0\.2\.2\) ended .* lack of memory"):
        raise_failure(tmp_path, 0.0, Died())


def test_a_crash_is_told_though_ray_only_saw_its_consequences(tmp_path: Path) -> None:
    begun(tmp_path, 0, "Fatal Python error: Segmentation fault\n\nStack:\n  File x, line 3 in kernel\n")
    begun(tmp_path, 1)
    record_failure(tmp_path, failing(ConnectionError("peer closed")), rank=2)
    lines = told(tmp_path, {2: ConnectionError("peer closed")})
    assert lines[:2] == [
        "learner 0 (process 62 on node-0): crashed in native code:",
        "Fatal Python error: Segmentation fault",
    ]
    assert "  File x, line 3 in kernel" in lines
    assert lines[-1] == "ConnectionError: peer closed"


def test_learners_that_left_no_exception_are_named(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    record_failure(tmp_path, failing(ConnectionError("peer closed")), rank=1)
    lines = told(tmp_path, {1: ConnectionError("peer closed")})
    assert lines[0].startswith("first failure, learner 1 ")
    assert lines[-1] == (
        "learner 0 (process 62 on node-0) left no exception: it was lost before, or ended with the others"
    )


def test_what_nobody_recorded_is_told_as_ray_tells_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no room for the workers"):
        raise_failure(tmp_path, 0.0, TimeoutError("no room for the workers"))
