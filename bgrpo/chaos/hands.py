"""What reaches into the processes of a node: signals to a run's own processes, and their memory."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 30.0
CLOCK_TOLERANCE_S = 2.0  # the time of a process's start is told in two ways


@dataclass(frozen=True, slots=True)
class Victim:
    """A process to hit.

    Attributes:
        pid: of the process, or of its parent, see ``child``.
        node: Ray's id of its node.
        title: what the process's title must hold, so that no other process is ever hit.
        child: hit the only child of ``pid`` instead.
        started: when it began, seconds since 1970; None when that is not known.
    """

    pid: int
    node: str
    title: str
    child: bool = False
    started: float | None = None


class NodeHand:
    """An actor on one node. It signals only processes that the node's own raylet started."""

    def signal(self, victim: Victim, number: int) -> tuple[str | None, tuple[int, float] | None]:
        """Send signal ``number``; says why not, or else which process (id and start) got it."""
        try:
            process = psutil.Process(victim.pid)
            if process.ppid() != os.getppid() or victim.title not in " ".join(process.cmdline()):
                return f"process {victim.pid} is no {victim.title} of this Ray", None
            if victim.started is not None and abs(process.create_time() - victim.started) > CLOCK_TOLERANCE_S:
                return f"process {victim.pid} is another one by now", None
            if victim.child:
                children = process.children()
                if len(children) != 1:
                    return f"process {victim.pid} has {len(children)} children", None
                process = children[0]
            begun = process.create_time()
            process.send_signal(number)
        except psutil.Error:
            return f"process {victim.pid} is gone", None
        return None, (process.pid, begun)

    def kill_raylet(self) -> str | None:
        """End this node, as if its machine had failed; says why not."""
        raylet = psutil.Process(os.getppid())
        if raylet.name() != "raylet":
            return f"process {raylet.pid} is no raylet"
        raylet.kill()
        return None

    def is_there(self, pid: int, started: float) -> bool:
        """True when the process that began then is still there."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
        return False

    def end_leftover(self, pid: int, started: float) -> bool:
        """Kill a process that was hit and should be gone; False when it is."""
        if not self.is_there(pid, started):
            return False
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).send_signal(signal.SIGKILL)
        return True

    def memory(self, pids: list[int]) -> dict[int, tuple[float, int]]:
        """Start and private memory (bytes) of each process that is there: what it shares, as the store, left out."""
        return {pid: found for pid in pids if (found := private_memory(pid)) is not None}


def private_memory(pid: int) -> tuple[float, int] | None:
    """When a process began, and its resident memory without shared pages, in bytes; None when it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        memory = process.memory_info()
        return process.create_time(), memory.rss - memory.shared
    return None


class Hands:
    """One :class:`NodeHand` per node, made when first needed. They reserve nothing."""

    def __init__(self) -> None:
        self._hands: dict[str, ActorHandle] = {}

    def ask(self, node: str, method: str, *arguments: Any) -> Any:
        """Call a method of the node's hand.

        Raises:
            RayError: the node does not answer.
        """
        if node not in self._hands:
            pinned = NodeAffinitySchedulingStrategy(node, soft=False)
            hand_class: Any = ray.remote(num_cpus=0)(NodeHand)
            self._hands[node] = hand_class.options(scheduling_strategy=pinned).remote()
        try:
            return ray.get(getattr(self._hands[node], method).remote(*arguments), timeout=ANSWER_S)
        except RayError:
            self._hands.pop(node, None)
            raise

    def close(self) -> None:
        """End them."""
        for hand in self._hands.values():
            ray.kill(hand)
        self._hands.clear()
