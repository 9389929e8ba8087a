"""The first cause of a failed run is kept with its traceback, and told apart from what may be tried again."""

from pathlib import Path

import pytest
from ray.train import WorkerGroupError

from bgrpo.distributed.driving import raise_failure
from bgrpo.distributed.failures import final_failure, read_failures, record_failure
from bgrpo.errors import UserError


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


def test_the_first_cause_is_raised_with_its_traceback(tmp_path: Path) -> None:
    record_failure(tmp_path, failing(ZeroDivisionError("first")), rank=1)
    record_failure(tmp_path, failing(ConnectionError("second")), rank=0)
    with pytest.raises(RuntimeError, match=r"(?s)first failure, learner 1 .*ZeroDivisionError: first"):
        raise_failure(tmp_path, 0.0, WorkerGroupError("workers failed", {0: ConnectionError("second")}))
