"""A run from outside: its driver, what can be seen of its processes, and what reaches into their nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.state import available_resources_per_node
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bgrpo.chaos.faults import TITLES, Missed, Victim, end_leftovers, hit, last_step, private_memory
from bgrpo.chaos.memory_growth import MemorySample
from bgrpo.chaos.recovery import LearnerLife, Sight
from bgrpo.distributed.rollout.service import SERVICE_NAMESPACE
from bgrpo.distributed.train.learner_places import LearnerPlace, read_learners
from bgrpo.runs.run_folder import RunFolder

ANSWER_S = 30.0
STATUS_S = 5.0
END_S = 30.0
UP = ("idle", "busy", "loading")
ROLES = {"rollout": "rollout actors", "verifier": "verifiers", "service": "rollout service", "learner": "learners"}


class NodeHand:
    """An actor on one node that calls functions there."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns."""
        return function(*arguments)


class Hands:
    """One :class:`NodeHand` per node, made when first needed. They reserve nothing."""

    def __init__(self) -> None:
        self._hands: dict[str, ActorHandle] = {}

    def call(self, node: str, function: Callable[..., Any], *arguments: Any, patience_s: float = 0.0) -> Any:
        """Call a function, which may take ``patience_s``, on a node.

        Raises:
            RayError: the node does not answer.
        """
        if node not in self._hands:
            pinned = NodeAffinitySchedulingStrategy(node, soft=False)
            hand_class: Any = ray.remote(num_cpus=0)(NodeHand)
            self._hands[node] = hand_class.options(scheduling_strategy=pinned).remote()
        hand: Any = self._hands[node]
        try:
            return ray.get(hand.call.remote(function, *arguments), timeout=ANSWER_S + patience_s)
        except RayError:
            self._hands.pop(node, None)
            raise

    def close(self) -> None:
        """End them."""
        for hand in self._hands.values():
            ray.kill(hand)
        self._hands.clear()


def hit_own(victim: Victim, signal: int) -> Victim | str:
    """Hit a process that the raylet of this node has started; says why not."""
    try:
        return hit(victim, signal, parent=os.getppid())
    except Missed as miss:
        return str(miss)


def kill_own_raylet() -> str | None:
    """End this node, as if its machine had failed; says why not."""
    raylet = psutil.Process(os.getppid())
    if raylet.name() != "raylet":
        return f"process {raylet.pid} is no raylet"
    raylet.kill()
    return None


def memory_of(pids: Sequence[int]) -> dict[int, tuple[float, int]]:
    """:func:`private_memory` of each process that is there."""
    return {pid: found for pid in pids if (found := private_memory(pid)) is not None}


class Driver:
    """A run's driver as a user starts it, in a process of its own, on the cluster that this process uses.

    Args:
        folder: of the run; need not exist yet.
        config: file to start it with.
        log: file for what it prints, over all its lives.
    """

    def __init__(self, folder: Path, config: Path, log: Path) -> None:
        self._folder, self._config, self._log = folder, config, log
        self.life = -1  #: 0 for the first process, 1 for the next, …
        self.left: set[LearnerPlace] = set()  #: learners of its earlier lives
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it is there."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Begin the run, or go on with it."""
        begun = (self._folder / "run.json").is_file()
        arguments = ["--resume", str(self._folder)] if begun else ["--config", str(self._config)]
        environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self.life, self.left = self.life + 1, set(read_learners(self._folder))
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs.train", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us, not for it
            )

    def poll(self) -> int | None:
        """Its exit status (negative: ended by that signal); None while it is there."""
        return self._process.poll() if self._process is not None else None

    def end(self) -> None:
        """Have it save a checkpoint and end, within a bound."""
        if self._process is not None and (pid := self.pid) is not None:
            self._process.terminate()
            end_leftovers([Victim(pid)], END_S)
            self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])


class RunView:
    """Looks at a run, whose folder need not exist yet."""

    def __init__(self, run: RunFolder, driver: Driver, hands: Hands) -> None:
        self._run, self._driver, self._hands = run, driver, hands
        self._status: dict[str, Any] | None = None

    def look(self) -> Sight:
        """Ask the rollout service of the present driver; all else here says what was seen at the last look."""
        self._status = None
        if self._driver.pid is not None:
            with suppress(ValueError, RayError):  # it starts, or is lost: seen as pools without actors
                service: Any = ray.get_actor(self._run.info().get("service", ""), SERVICE_NAMESPACE)
                self._status = ray.get(service.status.remote(), timeout=STATUS_S)
        first = next((place for place in self.learners() if place.rank == 0), None)
        life = None if first is None else LearnerLife(f"{first.node} {first.pid} {first.started}", first.step)
        pools = ("rollout", "verifier")
        actors = {pool: {actor["actor"]: actor["state"] in UP for actor in self._actors(pool)} for pool in pools}
        return Sight(self._driver.life, last_step(self._run.metrics_path), life, actors)

    def _actors(self, pool: str) -> list[dict[str, Any]]:
        """The pool's actors, without stand-ins that rest."""
        found = [] if self._status is None else self._status.get(pool, {"actors": []})["actors"]
        return [actor for actor in found if actor["is_at_work"] or not actor["is_stand_in"]]

    def learners(self) -> list[LearnerPlace]:
        """The learners of the present driver; fewer than there should be while they start."""
        return [place for place in read_learners(self._run.path) if place not in self._driver.left]

    def victims(self, role: str) -> list[Victim]:
        """The processes of a role (``check``, or one of :data:`ROLES`) that are up."""
        if role == "check":
            return [replace(found, child=True, name=f"check of {found.name}") for found in self.victims("verifier")]
        title = TITLES[role]
        if role == "learner":
            return [
                Victim(place.pid, title, started=place.started, node=place.node, name=f"learner {place.rank}")
                for place in self.learners()
            ]
        if role == "service":
            place = {} if self._status is None else self._status["service"]
            return [Victim(place["pid"], title, node=place["node"], name="service")] if place else []
        return [
            Victim(actor["pid"], title, node=actor["node"], name=f"{role} {actor['actor']}", number=actor["actor"])
            for actor in self._actors(role)
            if actor["state"] in UP and "pid" in actor
        ]

    def removable_nodes(self) -> dict[str, Victim]:
        """Nodes with rollout actors, no learner, not the service, the head nor this process; one actor of each."""
        kept = {victim.node for role in ("learner", "service") for victim in self.victims(role)}
        kept |= {node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
        kept.add(ray.get_runtime_context().get_node_id())
        found = sorted(self.victims("rollout"), key=lambda victim: victim.node)
        return {victim.node: victim for victim in found if victim.node not in kept}

    def memory(self, at: float) -> Iterator[MemorySample]:
        """Memory of every process of the run, and of the object stores of their nodes."""
        if (pid := self._driver.pid) is not None and (found := private_memory(pid)) is not None:
            yield MemorySample("driver", str(found[0]), at, found[1])
        nodes: dict[str, dict[int, str]] = defaultdict(dict)
        for role, name in ROLES.items():
            for victim in self.victims(role):
                nodes[victim.node][victim.pid] = name
        for node, names in nodes.items():
            try:
                memory = self._hands.call(node, memory_of, list(names))
            except RayError:  # the node is lost, or too busy to answer: the next sample is only seconds away
                continue
            for pid, (started, value) in memory.items():
                yield MemorySample(names[pid], f"{node} {pid} {started}", at, value)
            if (used := object_store_in_use(node)) is not None:
                yield MemorySample("object store", node, at, used)


def object_store_in_use(node: str) -> int | None:
    """Bytes of a node's object store that somebody still refers to; None when the node is not known.

    From what the head knows: a raylet that is asked for its store asks all its workers, and waits for one that hangs.
    """
    key = "object_store_memory"
    size = {entry["NodeID"]: entry["Resources"].get(key) for entry in ray.nodes()}.get(node)
    free = available_resources_per_node().get(node, {}).get(key)
    return None if size is None or free is None else int(size - free)
