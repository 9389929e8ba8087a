"""The pool with real processes: killed, stopped, raising. The state machine's own tests need no Ray."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any

import numpy as np
import pytest
import ray
from pooled_actors import Echo, Unlucky, Unpreparable

from bgrpo.chaos.faults import alive, hit
from bgrpo.distributed.pool.actor_pool import ActorPool, PoolError, remote_class
from bgrpo.distributed.pool.pool_records import ActorState, PoolLimits
from bgrpo.distributed.pool.pool_scaling import ScalingLimits
from bgrpo.errors import UserError
from bgrpo.training.stacks import NO_ANSWER

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
LIMITS = PoolLimits(respawns=2, backoff_s=0.05)


@asynccontextmanager
async def running(
    size: int,
    actor: type = Echo,
    fetch: Callable[[Any], ray.ObjectRef] | None = None,
    scaling: ScalingLimits | None = None,
    limits: PoolLimits = LIMITS,
) -> AsyncIterator[ActorPool]:
    """A started pool whose clock ticks."""
    remote = remote_class(actor).options(num_cpus=0)
    pool = ActorPool("echo", size, limits, remote.remote, fetch, scaling=scaling, find_fault=find_fault)

    async def clock() -> None:
        while True:
            pool.tick()
            await asyncio.sleep(0.02)

    pool.start()
    ticking = asyncio.create_task(clock())
    try:
        yield pool
    finally:
        ticking.cancel()
        pool.shutdown()


def find_fault(request: Any, reply: Any) -> str | None:
    return "it is a word" if isinstance(reply, str) else None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def idle_pids(pool: ActorPool) -> list[int]:
    return [actor["pid"] for actor in pool.status()["actors"] if actor["state"] == ActorState.IDLE]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def test_every_request_gets_its_own_answer() -> None:
    async def test() -> None:
        async with running(3) as pool:
            await until(lambda: len(idle_pids(pool)) == 3)
            replies = await asyncio.gather(*(pool.request(i, None, 30) for i in range(50)))
            assert [reply[0] for reply in replies] == list(range(50))
            assert len({reply[1] for reply in replies}) == 3, "all actors took part"

    run(test)


def test_a_killed_or_hanging_actor_is_replaced_idle_or_in_the_middle_of_a_request() -> None:
    async def test() -> None:
        async with running(1) as pool:
            await until(lambda: len(idle_pids(pool)) == 1)
            first = idle_pids(pool)[0]
            hit(first, SIGKILL)
            await until(lambda: idle_pids(pool) not in ([], [first]))  # though nobody asked for anything
            assert pool.state.first_failure is not None
            assert f"pid {first} on " in pool.state.first_failure.cause
            assert "it was killed (SIGKILL" in pool.state.first_failure.cause

            second = idle_pids(pool)[0]
            hit(second, SIGSTOP)
            reply = asyncio.create_task(pool.request("x", None, 30))
            await until(lambda: not idle_pids(pool))
            hit(second, SIGKILL)
            text, third, _ = await reply
            assert text == "x" and third != second

    run(test)


def test_an_actor_that_hangs_in_a_request_is_killed_after_its_limit() -> None:
    async def test() -> None:
        async with running(1) as pool:
            await until(lambda: len(idle_pids(pool)) == 1)
            victim = idle_pids(pool)[0]
            hit(victim, SIGSTOP)
            start = time.monotonic()
            text, pid, _ = await pool.request("x", None, 1.0)
            assert text == "x" and pid != victim
            assert time.monotonic() - start > 1.0
            assert pool.state.first_failure is not None
            assert "killed because it was busy with request 0 for more than 1 s" in pool.state.first_failure.cause

    run(test)


def test_stopped_actors_are_noticed_by_their_silence_and_busy_ones_are_not_silent() -> None:
    silence_s = 6.0

    async def test() -> None:
        async with running(3, limits=replace(LIMITS, silence_s=silence_s)) as pool:
            await until(lambda: len(idle_pids(pool)) == 3)
            slow = asyncio.create_task(pool.request(["sleep", 1.5 * silence_s], None, 60))
            await until(lambda: len(idle_pids(pool)) == 2)
            stopped, other = idle_pids(pool)
            hit(stopped, SIGSTOP)
            start = time.monotonic()
            await until(lambda: stopped not in idle_pids(pool))
            assert time.monotonic() - start > 0.3 * silence_s, "not at once, and though nobody asked it for anything"
            assert pool.state.first_failure is not None
            assert "gave no sign of life for more than 6 s" in pool.state.first_failure.cause
            assert f"pid {stopped} on " in pool.state.first_failure.cause
            await slow
            assert other in idle_pids(pool) and pool.state.restarts == 1

    run(test)


def test_the_pool_grows_under_a_queue_and_shrinks_after(caplog: pytest.LogCaptureFixture) -> None:
    scaling = ScalingLimits(least=1, most=3, up_s=0.3, down_s=2.0)

    async def test() -> None:
        async with running(1, scaling=scaling) as pool:
            await until(lambda: len(idle_pids(pool)) == 1)
            answers = asyncio.gather(*(pool.request(["sleep", 1.0, i], None, 60) for i in range(12)))
            await until(lambda: pool.status()["size"] == 3 and len(pool.status()["actors"]) == 3)
            replies = await answers
            assert [reply[0][2] for reply in replies] == list(range(12))
            assert len({reply[1] for reply in replies}) >= 2, "those that were added took part"
            await until(lambda: len(pool.status()["actors"]) == 1 and len(idle_pids(pool)) == 1)
            assert pool.state.restarts == 0 and pool.state.first_failure is None
            assert (await pool.request("x", None, 30))[0] == "x"

    with caplog.at_level("INFO", logger="bgrpo.distributed.pool.actor_pool"):
        run(test)
    lines = [record.getMessage() for record in caplog.records if " → " in record.getMessage()]
    sizes = [int(line.partition(":")[0].split()[-1]) for line in lines]
    assert sizes in ([2, 3, 1], [2, 3, 2, 1]), "the last two requests may have ended far apart"
    assert lines[0].startswith("echos 1 → 2: requests waited for") and "for 2 s" in lines[-1]


def test_garbage_and_a_lack_of_memory_cost_the_actor_not_the_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(2) as pool:
            await until(lambda: len(idle_pids(pool)) == 2)
            once = tmp_path / "once"
            once.touch()
            request, *_ = await pool.request(["garbage", str(once)], None, 30)
            assert request == ["garbage", str(once)]
            assert pool.status()["garbled_replies"] == 1 and pool.state.restarts <= 1
            assert pool.state.first_failure is not None
            assert "its reply to request 0 is garbage: it is a word" in pool.state.first_failure.cause
            with pytest.raises(PoolError, match="3 actors in a row died over it") as caught:
                await pool.request(["memory"], None, 30)
            assert "MemoryError" in str(caught.value)
            assert (await pool.request("x", None, 30))[0] == "x", "the pool goes on"

    run(test)


def test_busy_actors_say_what_they_do_and_stopped_ones_do_not_answer() -> None:
    async def test() -> None:
        async with running(3) as pool:
            await until(lambda: len(idle_pids(pool)) == 3)
            assert await pool.stacks(0.0) == [], "idle ones are not asked"
            work = [asyncio.create_task(pool.request(["hang"], None, 60)) for _ in range(3)]
            await until(lambda: not idle_pids(pool))
            stopped = next(iter(pool.state.actors.values()))
            hit(int(stopped.where.split()[1]), SIGSTOP)
            report = []
            while not any("hang_for_ever" in line for line in report):  # their threads may not have come that far
                report = await asyncio.wait_for(pool.stacks(0.0), 60)  # a stopped actor does not hold it up
            text = "\n".join(report)
            assert f"echo {stopped.number} ({stopped.where}):\n  {NO_ANSWER}" in text
            assert text.count("in hang_for_ever: time.sleep(1)") == 1, "equal stacks are shown once"
            assert len(re.findall(r"echo \d \(pid \d+ on \S+\)", text)) == 3
            assert "linger" not in text and "stacks" not in text
            assert await pool.stacks(600.0) == [], "not busy for that long"
            for task in work:
                task.cancel()

    run(test)


def test_request_that_fails_everywhere_is_refused_with_its_traceback() -> None:
    async def test() -> None:
        async with running(2) as pool:
            with pytest.raises(PoolError, match="3 actors in a row died over it") as caught:
                await pool.request(["raise"], None, 30)
            assert "ValueError: in the actor" in str(caught.value)
            assert "pooled_actors.py" in str(caught.value)
            assert "\x1b" not in str(caught.value)
            assert (await pool.request("x", None, 30))[0] == "x", "the pool goes on"

    run(test)


def test_actors_that_cannot_start() -> None:
    async def test() -> None:
        async with running(2, Unpreparable) as pool:
            with pytest.raises(UserError, match=r"^an actor cannot start: policy nowhere: no such directory$"):
                await pool.request("x", None, 30)
        async with running(1, Unlucky) as pool:
            with pytest.raises(PoolError, match="3 actors failed in a row") as caught:
                await pool.request("x", None, 30)
            assert "OSError: the device is busy" in str(caught.value)

    run(test)


def test_a_users_error_and_a_cancelled_request_cost_no_actor() -> None:
    async def test() -> None:
        async with running(1) as pool:
            await until(lambda: len(idle_pids(pool)) == 1)
            with pytest.raises(UserError, match=r"^prompt 3 is empty$"):
                await pool.request(["refuse"], None, 30)
            slow = asyncio.create_task(pool.request(["sleep", 0.5], None, 30))
            waiting = asyncio.create_task(pool.request("never sent", None, 30))
            await asyncio.sleep(0.1)
            slow.cancel()
            waiting.cancel()
            assert (await pool.request("x", None, 30))[0] == "x"
            assert pool.state.restarts == 0 and not pool.state.requests

    run(test)


def test_weights_are_loaded_before_the_request_that_needs_them() -> None:
    async def test() -> None:
        buffers = {version: ray.put(np.full(1000, version, np.uint8)) for version in (1, 2)}
        async with running(2, fetch=buffers.__getitem__) as pool:
            replies = await asyncio.gather(*(pool.request(i, 1 + i % 2, 30) for i in range(10)))
            assert [reply[2] for reply in replies] == [(1 + i % 2, 1000 * (1 + i % 2)) for i in range(10)]

    run(test)


def test_lost_weights_refuse_the_request() -> None:
    @ray.remote(num_cpus=0)
    class Owner:
        def put(self) -> list[ray.ObjectRef]:
            return [ray.put(np.zeros(1_000_000, np.uint8))]

    async def test() -> None:
        owner = Owner.remote()
        reference = (await owner.put.remote())[0]
        good = ray.put(np.ones(10, np.uint8))
        async with running(1, fetch={"lost": reference, "good": good}.__getitem__) as pool:
            ray.kill(owner)
            with pytest.raises(PoolError, match="the weights it needs are lost"):
                for _ in range(200):  # until the end of the owner has got around
                    await pool.request("x", "lost", 30)
                    await pool.request("x", "good", 30)
                    await asyncio.sleep(0.05)
            assert (await pool.request("x", "good", 30))[2] == ("good", 10)
            assert pool.state.restarts == 0

    run(test)


def test_shutdown_ends_processes_and_open_requests() -> None:
    async def test() -> None:
        async with running(1) as pool:
            await until(lambda: len(idle_pids(pool)) == 1)
            pid = idle_pids(pool)[0]
            reply = asyncio.create_task(pool.request(["sleep", 60], None, 90))
            await asyncio.sleep(0.1)
        with pytest.raises(PoolError, match="the echos were shut down"):
            await reply
        await until(lambda: not alive(pid))

    run(test)
