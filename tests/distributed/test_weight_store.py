"""Published weights: which can be asked for, and how long they are kept."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import ray

from bgrpo.distributed.rollout.weights import WeightStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def buffer(value: int) -> ray.ObjectRef:
    return ray.put(np.full(4, value, np.uint8))


def test_dropped_only_when_nobody_uses_them() -> None:
    async def test() -> None:
        store = WeightStore()
        first = await store.publish(0, buffer(0))
        with store.in_use(first):
            for version in (1, 2, 3):
                await store.publish(version, buffer(version))
            assert (await store.reference(first) == 0).all()
        with pytest.raises(KeyError):
            store.reference(first)
        with pytest.raises(RuntimeError, match="version 0 are stale"), store.in_use(first):
            pass
        assert store.versions == [2, 3]
        assert (ray.get(store.reference(await store.wait(2, 1.0))) == 2).all()

    asyncio.run(test())


def test_waiting_for_a_version_that_is_still_to_come() -> None:
    async def test() -> None:
        store = WeightStore()
        waiting = asyncio.create_task(store.wait(1, 5.0))
        await store.publish(0, buffer(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        published = await store.publish(1, buffer(1))
        assert await waiting == published
        with pytest.raises(TimeoutError, match=r"version 2 were not published within 0.05 s; held: \[0, 1\]"):
            await store.wait(2, 0.05)

    asyncio.run(test())


def test_publishing_an_older_version_forgets_what_came_after() -> None:
    async def test() -> None:
        store = WeightStore()
        before = [await store.publish(version, buffer(0)) for version in (7, 8)]
        again = await store.publish(7, buffer(1))
        assert store.versions == [7]
        assert again != before[0], "the same version, but not the same weights"
        with pytest.raises(TimeoutError):
            await store.wait(8, 0.05)

    asyncio.run(test())


def test_a_full_object_store_slows_publishing_but_loses_nothing() -> None:
    """Older objects fill the session's store; what does not fit is moved to disk."""

    async def test() -> None:
        store = WeightStore()
        size = 40_000_000
        capacity = ray.cluster_resources()["object_store_memory"]
        held = [ray.put(np.full(size, value, np.uint8)) for value in range(int(capacity / size))]
        for version in (0, 1, 2):
            await store.adopt(await store.publish(version, ray.put(np.full(size, 100 + version, np.uint8))))
        for version in (1, 2):
            fetched = await store.reference(await store.wait(version, 1.0))
            assert fetched.size == size and (fetched == 100 + version).all()
            del fetched
        for value, reference in enumerate(held):
            assert (await reference == value).all()

    asyncio.run(test())
