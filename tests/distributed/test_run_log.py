"""Log lines say run, step, actor, host and process, failures name their place, and nothing says a password."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pooled_actors import Echo

from bgrpo.distributed.pool.actor_pool import ActorPool, Place, PoolError, remote_class
from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import PoolLimits
from bgrpo.distributed.train.failures import read_failures, record_failure
from bgrpo.distributed.watch.run_log import start_run_log


@pytest.fixture
def package_logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was afterwards."""
    logger = logging.getLogger("bgrpo")
    before = list(logger.handlers), logger.level, logger.propagate
    yield logger
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_says_who_where_and_when(package_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log = start_run_log("a-run", "learner 1")
    child = logging.getLogger("bgrpo.runs.checkpoints")
    child.warning("first\nof %d lines", 2)
    log.step = 12
    child.info("about another", extra={"actor": "rollout actor 3"})
    child.debug("not told")
    first, second = lines(capsys)
    assert first["message"] == "first\nof 2 lines"
    assert (first["run"], first["step"], first["actor"]) == ("a-run", None, "learner 1")
    assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
    assert (first["level"], first["logger"]) == ("WARNING", "bgrpo.runs.checkpoints")
    assert str(first["time"]).endswith("+00:00")
    assert (second["step"], second["actor"], second["level"]) == (12, "rollout actor 3", "INFO")


def test_a_second_start_replaces_the_first(package_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    start_run_log("first", "learner 0")
    start_run_log("second", "learner 0")
    package_logger.warning("once")
    assert [line["run"] for line in lines(capsys)] == ["second"]


def test_passwords_are_left_out(package_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    start_run_log("a-run", "learner 0")
    try:
        raise ConnectionError("http://mallory:canary@host/ does not answer, token=canary")
    except ConnectionError:
        package_logger.exception("postgresql://mallory:canary@host/db?password=canary")
    (line,) = lines(capsys)
    assert "ConnectionError" in str(line["trace"]) and "@host" in str(line["message"])
    assert "canary" not in json.dumps(line)


def test_a_failure_is_logged_with_its_traceback_and_kept_with_its_step(
    package_logger: logging.Logger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start_run_log("a-run", "learner 2").step = 7
    try:
        raise ZeroDivisionError("first cause")
    except ZeroDivisionError as error:
        record_failure(tmp_path, error, rank=2, step=7)
    (line,) = lines(capsys)
    assert (line["run"], line["step"], line["actor"], line["level"]) == ("a-run", 7, "learner 2", "ERROR")
    assert "ZeroDivisionError: first cause" in str(line["trace"])
    (failure,) = read_failures(tmp_path)
    assert failure.where == f"learner 2 after step 7 (process {os.getpid()} on {socket.gethostname()})"


def test_an_actor_that_hangs_is_named_with_its_host() -> None:
    """The pool kills it by its limit, so no error of Ray says where it was."""
    state = PoolState(1, PoolLimits(respawns=0))
    state.start(0.0)
    state.placed(0, 0.5, str(Place(123, "node-7", "f00")))
    state.spawned(0, 1.0)
    state.submit(0, None, 3.0, 2.0)
    state.tick(6.0)
    place = "killed because it was busy with request 0 for more than 3 s (pid 123 on node-7)"
    assert state.first_failure is not None and state.first_failure.cause == place
    assert state.failure is not None and state.failure.endswith(place)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_pool_logs_who_comes_and_who_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def lose_two() -> ActorPool:
        limits = PoolLimits(deaths_per_request=2, backoff_s=0.05)
        pool = ActorPool("echo", 1, limits, remote_class(Echo).options(num_cpus=0).remote)
        pool.start()
        await pool.request("hello", None, 30)
        with pytest.raises(PoolError, match=r"(?s)2 actors in a row died over it; .*\(pid \d+ on "):
            await asyncio.gather(pool.request(["exit"], None, 30), tick(pool))
        pool.shutdown()
        return pool

    async def tick(pool: ActorPool) -> None:
        while pool.state.requests:
            pool.tick()
            await asyncio.sleep(0.02)

    caplog.set_level(logging.INFO, "bgrpo")
    pool = asyncio.run(asyncio.wait_for(lose_two(), 60))
    assert pool.answered == {0: 1}
    of_actors = [record for record in caplog.records if hasattr(record, "actor")]  # Ray's raylet has its say too
    told = [(record.actor, record.levelname, record.getMessage()) for record in of_actors]
    place = rf"\(pid \d+ on {re.escape(socket.gethostname())}\)"
    for actor, level, message in (
        ("echo 0", "INFO", rf"echo 0 {place}: up"),
        ("echo 0", "WARNING", rf"echo 0 {place}: lost: its process \(pid \d+ at [\d.]+\) ended without an exception"),
        ("echo 1", "WARNING", rf"echo 1 {place}: lost: its process \(pid \d+ at [\d.]+\) ended without an exception"),
    ):
        assert [True for who, how, what in told if (who, how) == (actor, level) and re.match(message, what)] == [True]
