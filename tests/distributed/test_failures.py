"""The first cause of a failed run is kept with its traceback, and told apart from what may be tried again."""

from pathlib import Path

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
