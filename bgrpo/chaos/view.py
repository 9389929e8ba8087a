"""What can be seen of a run from outside: its driver, its learners, its pools, and the memory of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayError

from bgrpo.chaos.hands import Hands, Victim, private_memory
from bgrpo.chaos.memory import MemorySample
from bgrpo.chaos.recovery import LearnerLife, Sight
from bgrpo.distributed.rollout.service import SERVICE_NAMESPACE
from bgrpo.distributed.train.whereabouts import LearnerPlace, read_learners
from bgrpo.runs.folder import RunFolder

STATUS_S = 5.0
END_S = 30.0
TAIL_BYTES = 1 << 16
UP = ("idle", "busy", "loading")
TITLES = {
    "rollout": "RolloutActor",
    "verifier": "VerifierActor",
    "service": "RolloutService",
    "learner": "RayTrainWorker",
}
ROLES = {"rollout": "rollout actors", "verifier": "verifiers"}


class Driver:
    """A run's driver as a user starts it, in a process of its own, on the cluster that this process uses.

    Attributes:
        life: 0 for the first process, 1 for the next, …
        left: learners of its earlier lives.

    Args:
        folder: of the run; need not exist yet.
        config: file to start it with.
        log: file for what it prints, over all its lives.
    """

    def __init__(self, folder: Path, config: Path, log: Path) -> None:
        self._folder = folder
        self._config = config
        self._log = log
        self.life = -1
        self.left: set[LearnerPlace] = set()
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

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Have it save a checkpoint and end, within a bound."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])


class RunView:
    """Looks at a run.

    Args:
        folder: of the run; need not exist yet.
        driver: of the run.
        hands: to reach into its nodes.
    """

    def __init__(self, folder: Path, driver: Driver, hands: Hands) -> None:
        self._run = RunFolder(folder)
        self._driver = driver
        self._hands = hands

    def status(self) -> dict[str, Any] | None:
        """What the rollout service of the present driver says; None when it does not answer."""
        if self._driver.pid is None:
            return None
        try:
            service: Any = ray.get_actor(self._run.info().get("service", ""), SERVICE_NAMESPACE)
            status: dict[str, Any] = ray.get(service.status.remote(), timeout=STATUS_S)
        except (ValueError, RayError, GetTimeoutError):
            return None
        return status

    def learners(self) -> list[LearnerPlace]:
        """The learners of the present driver; fewer than there should be while they start."""
        return [place for place in read_learners(self._run.path) if place not in self._driver.left]

    def sight(self, status: dict[str, Any] | None) -> Sight:
        """What the fault's consequences are read from."""
        first = next((place for place in self.learners() if place.rank == 0), None)
        life = None if first is None else LearnerLife(f"{first.node} {first.pid} {first.started}", first.step)
        actors: dict[str, dict[int, bool]] = {}
        for pool in ROLES:
            found = status[pool]["actors"] if status is not None else []
            actors[pool] = {actor["actor"]: actor["state"] in UP for actor in found if not _rests(actor)}
        return Sight(self._driver.life, last_step(self._run.metrics_path), life, actors)

    def pooled(self, pool: str, status: dict[str, Any] | None) -> list[tuple[int, Victim]]:
        """Number and process of the pool's actors that are up, without stand-ins that rest."""
        found = status[pool]["actors"] if status is not None else []
        up = [actor for actor in found if actor["state"] in UP and "pid" in actor and not _rests(actor)]
        return [(actor["actor"], Victim(actor["pid"], actor["node"], TITLES[pool])) for actor in up]

    def memory(self, status: dict[str, Any] | None, at: float) -> Iterator[MemorySample]:
        """Memory of every process of the run, and of the object stores of their nodes."""
        if (pid := self._driver.pid) is not None and (found := private_memory(pid)) is not None:
            yield MemorySample("driver", str(found[0]), at, found[1])
        roles: dict[str, dict[int, str]] = defaultdict(dict)
        for place in self.learners():
            roles[place.node][place.pid] = "learners"
        for pool, role in ROLES.items():
            for _, victim in self.pooled(pool, status):
                roles[victim.node][victim.pid] = role
        if status is not None:
            roles[status["service"]["node"]][status["service"]["pid"]] = "rollout service"
        for node, pids in roles.items():
            yield from self._node_memory(node, pids, at)

    def _node_memory(self, node: str, roles: dict[int, str], at: float) -> Iterator[MemorySample]:
        try:
            memory = self._hands.ask(node, "memory", list(roles))
        except RayError:  # the node is lost, or too busy to answer: the next sample is only seconds away
            return
        for pid, (started, value) in memory.items():
            yield MemorySample(roles[pid], f"{node} {pid} {started}", at, value)
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


def _rests(actor: dict[str, Any]) -> bool:
    return actor["is_stand_in"] and not actor["is_at_work"]


def last_step(metrics: Path) -> int:
    """The step of the last whole line of a ``metrics.jsonl``; 0 when there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0
