"""Published weights: one flat buffer per version in the object store, old versions dropped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import ray


class Weights(NamedTuple):
    """Names one set of weights.

    Attributes:
        version: the policy version, as the learners count it.
        publication: counts calls of ``publish``. Learners that resume from a checkpoint publish versions again which
            others have held already, and those need not be the same bits.
    """

    version: int
    publication: int


class WeightStore:
    """The versions that can be asked for.

    A version can be loaded as soon as it is published, from its publisher's buffer; :meth:`adopt` then makes a copy
    which the store owns, so that it outlives the learner.

    Args:
        kept: newest publications that can be asked for, besides those in use; ``rollout.max_staleness`` + 1 are needed.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._references: dict[Weights, ray.ObjectRef] = {}
        self._known: list[Weights] = []
        self._users: Counter[Weights] = Counter()
        self._publications = 0
        self._published = asyncio.Condition()

    def __contains__(self, weights: object) -> bool:
        """True for what can be asked for."""
        return weights in self._known

    @property
    def versions(self) -> list[int]:
        """Versions that can be asked for, oldest first."""
        return [weights.version for weights in self._known]

    async def publish(self, version: int, buffer: ray.ObjectRef) -> Weights:
        """Make ``buffer`` (see :mod:`bgrpo.policies.flat_weights`) available as ``version``.

        Versions that are not older than ``version`` belong to learners that are gone, and cannot be asked for any more.
        """
        weights = Weights(version, self._publications)
        self._publications += 1
        self._references[weights] = buffer
        self._known = [*(known for known in self._known if known.version < version), weights][-self._kept :]
        self._drop_unused()
        async with self._published:
            self._published.notify_all()
        return weights

    async def adopt(self, weights: Weights) -> None:
        """Copy the buffer while others load it; later loads take the copy, which does not end with its publisher."""
        published = self._references.get(weights)
        if published is None:  # dropped already
            return
        copy = await asyncio.to_thread(ray.put, await published)
        if weights in self._references:
            self._references[weights] = copy

    async def wait(self, version: int, timeout_s: float) -> Weights:
        """The weights of ``version``; waits when it is still to come.

        Raises:
            RuntimeError: a later version was published and this one was dropped.
            TimeoutError: nobody published it in time.
        """
        try:
            async with asyncio.timeout(timeout_s), self._published:
                await self._published.wait_for(lambda: bool(self._known) and self._known[-1].version >= version)
        except TimeoutError:
            raise TimeoutError(
                f"weights of version {version} were not published within {timeout_s:g} s; held: {self.versions}"
            ) from None
        for weights in self._known:
            if weights.version == version:
                return weights
        raise self._stale(version)

    def reference(self, weights: Weights) -> ray.ObjectRef:
        """The buffer in the object store."""
        return self._references[weights]

    @contextmanager
    def in_use(self, weights: Weights) -> Iterator[None]:
        """Keep the buffer for as long as the block runs.

        Raises:
            RuntimeError: it was dropped already.
        """
        if weights not in self._references:
            raise self._stale(weights.version)
        self._users[weights] += 1
        try:
            yield
        finally:
            self._users[weights] -= 1
            self._drop_unused()

    def _stale(self, version: int) -> RuntimeError:
        return RuntimeError(f"weights of version {version} are stale; held: {self.versions}")

    def _drop_unused(self) -> None:
        for weights in list(self._references):
            if weights not in self._known and not self._users[weights]:
                del self._references[weights], self._users[weights]
