"""Things that happen to a pool within one turn of the event loop, with actors that do what the test says. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from bgrpo.distributed.pool import actor_pool
from bgrpo.distributed.pool.actor_pool import ActorPool, Place, PoolError
from bgrpo.distributed.pool.pool_records import PoolLimits


class Calls:
    """Stands for one method of an actor handle; every call waits for the test to settle it."""

    def __init__(self) -> None:
        self.pending: list[asyncio.Future[Any]] = []

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]


class Handle:
    def __init__(self) -> None:
        self.place, self.prepare, self.linger, self.pulse, self.load, self.serve = (Calls() for _ in range(6))


class Harness:
    """A pool over :class:`Handle` objects."""

    def __init__(self, size: int = 1) -> None:
        self.handles: list[Handle] = []
        self.killed: list[Handle] = []
        self.pool = ActorPool("fake", size, PoolLimits(), self.spawn)

    def spawn(self) -> Any:
        self.handles.append(Handle())
        return self.handles[-1]

    async def start(self) -> None:
        self.pool.start()
        await turn()
        await self.prepared(0)

    async def prepared(self, index: int) -> None:
        self.handles[index].place.pending[0].set_result(Place(1, "host", "node"))
        await turn()
        self.handles[index].prepare.pending[0].set_result(None)
        await turn()


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Harness], Coroutine[Any, Any, None]]], None]:
    def start(test: Callable[[Harness], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            harness = Harness()
            monkeypatch.setattr(actor_pool.ray, "kill", lambda handle, no_restart: harness.killed.append(handle))
            await harness.start()
            await test(harness)
            assert harness.pool.state.failure is None, "the pool still works"

        asyncio.run(main())

    return start


def test_death_noticed_right_after_a_dispatch(run: Any) -> None:
    """The reply and the end of the process arrive together: the next request is sent to a handle already dropped."""

    async def test(harness: Harness) -> None:
        first = asyncio.create_task(harness.pool.request("a", None, 10))
        second = asyncio.create_task(harness.pool.request("b", None, 10))
        await turn()
        old = harness.handles[0]
        old.serve.pending[0].set_result("A")
        old.linger.pending[0].set_exception(ActorDiedError())
        await turn()
        assert await first == "A"
        harness.pool.tick()
        await turn()
        await harness.prepared(1)
        for call in old.serve.pending[1:]:
            call.set_exception(ActorDiedError())
        harness.handles[1].serve.pending[0].set_result("B")
        assert await second == "B"
        assert harness.killed == [old]

    run(test)


def test_answer_and_cancellation_together(run: Any) -> None:
    async def test(harness: Harness) -> None:
        task = asyncio.create_task(harness.pool.request("a", None, 10))
        await turn()
        harness.handles[0].serve.pending[0].set_result("A")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turn()
        other = asyncio.create_task(harness.pool.request("b", None, 10))
        await turn()
        harness.handles[0].serve.pending[1].set_result("B")
        assert await other == "B"

    run(test)


def test_cancelled_while_it_is_being_dispatched(run: Any) -> None:
    async def test(harness: Harness) -> None:
        first = asyncio.create_task(harness.pool.request("a", None, 10))
        second = asyncio.create_task(harness.pool.request("b", None, 10))
        await turn()
        harness.handles[0].serve.pending[0].set_result("A")
        second.cancel()
        await turn()
        assert await first == "A"
        with pytest.raises(asyncio.CancelledError):
            await second
        harness.handles[0].serve.pending[1].set_result("B")
        third = asyncio.create_task(harness.pool.request("c", None, 10))
        await turn()
        harness.handles[0].serve.pending[2].set_result("C")
        assert await third == "C"

    run(test)


def test_refusal_and_cancellation_together(run: Any) -> None:
    async def test(harness: Harness) -> None:
        task = asyncio.create_task(harness.pool.request("a", None, 10))
        await turn()
        for death in range(3):
            harness.handles[death].serve.pending[0].set_exception(ActorDiedError())
            if death == 2:
                task.cancel()
            await turn()
            harness.pool.state.slots[0].spawn_at = 0.0  # no back-off here
            harness.pool.tick()
            await turn()
            await harness.prepared(death + 1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(harness.killed) == 3

    run(test)


def test_a_fault_of_the_pool_itself_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the pool's own code reaches whoever waits."""

    async def main() -> None:
        harness = Harness()
        await harness.start()
        request = asyncio.create_task(harness.pool.request("a", None, 10))
        await turn()
        harness.handles[0].serve.pending[0].set_exception(ZeroDivisionError("a bug"))
        with pytest.raises(PoolError, match="the pool of fakes is broken: ZeroDivisionError: a bug"):
            await request

    asyncio.run(main())
