"""A pool on a cluster of several nodes that come and go; run as a program, because it has a Ray of its own.

Writes one JSON object to the file it is given: for each act the seconds until the pool was as it should be, and what
became of the requests. With ``quick`` behind the file's name only one node is lost and replaced.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooled_actors import Echo

from bgrpo.chaos.faults import hit
from bgrpo.distributed.pool.actor_pool import ActorPool, remote_class
from bgrpo.distributed.pool.pool_records import PoolLimits
from bgrpo.distributed.session.ray_session import node_share

KIND = "decoders"
SYSTEM = {  # a dead raylet is noticed in about two seconds instead of fifteen
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
LIMIT_S = 200.0


class Play:
    """The pool, its clock, and requests that never stop coming."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        spawn = remote_class(Echo).options(num_cpus=1, resources=node_share(KIND)).remote
        self.pool = ActorPool("echo", 2, PoolLimits(respawns=0, deaths_per_request=1), spawn, asks={"CPU": 1.0})
        self.sent: list[asyncio.Task[Any]] = []
        self.report: dict[str, Any] = {}

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1, resources={KIND: 1.0}, wait=False)

    async def clock(self) -> None:
        while True:
            self.pool.tick()
            await asyncio.sleep(0.05)

    async def feed(self) -> None:
        """Keep four requests open."""
        while True:
            while sum(not task.done() for task in self.sent) < 4:
                request = self.pool.request(["sleep", 0.2, len(self.sent)], None, 30.0)
                self.sent.append(asyncio.create_task(request))
            await asyncio.sleep(0.02)

    def up(self) -> int:
        return sum(actor.is_up for actor in self.pool.state.actors.values())

    def answered(self) -> int:
        return sum(task.done() for task in self.sent)

    async def until(self, name: str, condition: Callable[[], bool]) -> None:
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > LIMIT_S:
                raise TimeoutError(f"{name}: {self.pool.report()}")
            await asyncio.sleep(0.02)
        self.report[name] = round(time.monotonic() - start, 2)

    async def more_answers(self, name: str) -> None:
        before = self.answered()
        await self.until(name, lambda: self.answered() >= before + 6)

    async def more_losses(self, first: Any, third: Any) -> None:
        await asyncio.to_thread(self.cluster.remove_node, third, True)
        await self.until("removal of a node noticed", lambda: self.up() == 1)
        await self.more_answers("requests after the removal")

        await asyncio.to_thread(self.cluster.remove_node, first, True)
        await self.until("no node is left", lambda: self.up() == 0)
        self.add_node()
        await self.until("one actor is back", lambda: self.up() == 1)
        await self.more_answers("requests on the node that came")

    async def acts(self, quick: bool) -> None:
        first, second = self.add_node(), self.add_node()
        self.pool.start()
        ticking = [asyncio.create_task(self.clock())]
        await self.until("two actors up", lambda: self.up() == 2)
        ticking.append(asyncio.create_task(self.feed()))
        await self.more_answers("requests on two nodes")

        hit(second.all_processes["raylet"][0].process.pid, SIGKILL)
        await self.until("loss of a raylet noticed", lambda: self.up() == 1)
        await self.more_answers("requests on the node that is left")
        await asyncio.to_thread(self.cluster.remove_node, second)  # its other processes
        third = self.add_node()
        await self.until("refilled by a new node", lambda: self.up() == 2)
        await self.more_answers("requests after the refill")

        if not quick:
            await self.more_losses(first, third)
        ticking[1].cancel()
        replies = await asyncio.gather(*self.sent)
        state = self.pool.state
        self.report |= {
            "every request answered once": [reply[0][2] for reply in replies] == list(range(len(replies))),
            "requests": len(replies),
            "nodes that answered": len({reply[1] for reply in replies}),
            "streaks": [slot.streak for slot in state.slots.values()],
            "failure": state.failure,
            "first": state.first_failure.cause if state.first_failure else None,
        }
        ticking[0].cancel()
        self.pool.shutdown()


if __name__ == "__main__":
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000, "_system_config": SYSTEM}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(made.address, log_to_driver=False)
        play = Play(made)
        asyncio.run(asyncio.wait_for(play.acts(quick="quick" in sys.argv), 200))
        Path(sys.argv[1]).write_text(json.dumps(play.report))
    finally:
        ray.shutdown()
        made.shutdown()
