"""What the rollout service tells Prometheus: its pools once per second, decoding and loaded weights as they come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping

from bgrpo.distributed.pool.actor_pool import ActorPool
from bgrpo.distributed.pool.pool_decisions import PoolState
from bgrpo.distributed.pool.pool_records import ActorState
from bgrpo.distributed.watch.prometheus import REFRESH_S, MetricsRecorder, Sample
from bgrpo.groups import ScoredGroup

DEAD = "dead"


class ServiceMetrics:
    """Counts and times of one rollout service.

    Attributes:
        outcomes: of all completions so far.
        stalls: times the service said who waits for whom; it counts them.

    Args:
        run: name of the run.
    """

    def __init__(self, run: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stalls = 0
        self._recorder = MetricsRecorder(run)
        self._tokens = 0
        self._sync = WeightSync()
        self._next = 0.0

    def decoded(self, seconds: float) -> None:
        """A request was decoded."""
        self._recorder.record([Sample("bgrpo_decode_seconds", seconds)])

    def scored(self, groups: Iterable[ScoredGroup]) -> None:
        """Groups were decoded and checked."""
        for group in groups:
            self.outcomes.update(group.outcomes)
            self._tokens += sum(len(completion.tokens) for completion in group.completions)

    def published(self, weights: Hashable) -> None:
        """Weights became available."""
        self._sync.published(weights, time.monotonic())

    def loaded(self, actor: int, weights: Hashable, state: PoolState) -> None:
        """A rollout actor of this pool holds weights."""
        up = [other.number for other in state.actors.values() if other.is_up and not other.is_stand_in]
        seconds = self._sync.loaded(actor, weights, up, time.monotonic())
        if seconds is not None:
            self._recorder.record([Sample("bgrpo_weight_sync_seconds", seconds)])

    def sample(self, pools: Mapping[str, ActorPool], now: float) -> None:
        """Record the state of the pools, at most once per :data:`.metrics.REFRESH_S`.

        Args:
            pools: by their tag.
            now: seconds, of the clock that the pools use.
        """
        if now < self._next:
            return
        self._next = now + REFRESH_S
        self._recorder.refresh()
        for name, pool in pools.items():
            self._recorder.record(pool_samples(name, pool.state, pool.answered, now))
        self._recorder.record(
            [
                *(Sample("bgrpo_completions_total", n, {"outcome": name}) for name, n in self.outcomes.items()),
                Sample("bgrpo_completion_tokens_total", self._tokens),
                Sample("bgrpo_stalls_total", self.stalls),
            ]
        )


def pool_samples(pool: str, state: PoolState, answered: Mapping[int, int], now: float) -> list[Sample]:
    """Actors by state, queue, answers and restarts of a pool.

    Args:
        pool: the tag.
        state: of the pool.
        answered: requests that each actor answered.
        now: seconds, of the clock that the pool uses.
    """
    tags = {"pool": pool}
    count = Counter(str(actor.state) for actor in state.actors.values())
    count[DEAD] = sum(slot.actor is None and not slot.is_stand_in for slot in state.slots.values())
    return [
        *(Sample("bgrpo_actors", count[name], {**tags, "state": name}) for name in (*map(str, ActorState), DEAD)),
        Sample("bgrpo_pool_size", state.size, tags),
        Sample("bgrpo_queue_requests", len(state.queue), tags),
        Sample("bgrpo_oldest_wait_seconds", state.oldest_wait(now), tags),
        *(Sample("bgrpo_requests_total", n, {**tags, "actor": str(actor)}) for actor, n in answered.items()),
        Sample("bgrpo_actor_restarts_total", state.restarts, tags),
        Sample("bgrpo_garbage_replies_total", state.garbled_replies, tags),
        Sample("bgrpo_pool_gave_up", float(state.failure is not None), tags),
    ]


class WeightSync:
    """Time from a publication of weights until each actor that is up has held them; of the newest publication only."""

    def __init__(self) -> None:
        self._weights: Hashable = None
        self._since = 0.0
        self._held: set[int] = set()

    def published(self, weights: Hashable, now: float) -> None:
        """The time begins."""
        self._weights, self._since, self._held = weights, now, set()

    def loaded(self, actor: int, weights: Hashable, up: Collection[int], now: float) -> float | None:
        """An actor holds weights; the seconds when it is the last one of ``up``, once per publication, else None."""
        if weights != self._weights:
            return None
        self._held.add(actor)
        if not self._held.issuperset(up):
            return None
        self._weights = None
        return now - self._since
