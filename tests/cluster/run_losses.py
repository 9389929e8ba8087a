"""Training runs on clusters that lose nodes; run as a program, because it has a Ray of its own.

Takes a folder, makes the runs in it, and writes ``report.json`` there: what was seen of each loss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.cluster_utils import Cluster

from bgrpo.chaos.faults import Victim, alive, last_step, wait_until
from bgrpo.distributed.train.learner_places import LearnerPlace, read_learners
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

SYSTEM = {  # a raylet that has ended is noticed in two seconds instead of fifteen, a slow one is left alone
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 30000,
    "health_check_failure_threshold": 3,
}
ENVIRONMENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "12"}
"""What this program is to be started with: who has lost the head ends after so many seconds instead of 60."""

STEPS, EVERY = 100, 5
LIMIT_S = 600.0


def until(condition: Callable[[], object], what: str) -> float:
    """Seconds until the condition held."""
    return wait_until(condition, what, LIMIT_S, poll_s=0.05)


def write_config(folder: Path) -> Path:
    """Learners and rollout actors have nodes of their own; a random one-layer policy, a user's reward."""
    tokenizer = build_tokenizer(0, 0)
    save_policy(build_policy(tokenizer, 1, 2, 16, 128, seed=3), tokenizer, folder / "policy")
    source = {"options": {"kind": "single", "degrees": [[2, 2]], "coefficients": 3}, "count": 12}
    tree = {
        "steps": STEPS,
        "policy": {"path": str(folder / "policy")},
        "task": {"train": source | {"seed": 1}, "validation": source | {"seed": 2}, "test": source | {"seed": 3}},
        "rollout": {
            "group_size": 4,
            "prompts_per_step": 4,
            "prompts_per_request": 2,
            "max_new_tokens": 6,
            "cpus_per_actor": 1,
            "node_resource": "rollout",
        },
        "reward": {"function": "reward_functions:length"},
        "learner": {"threads": 1, "learning_rate": 1e-3, "node_resource": "learner"},
        "evaluation": {"final": False},
        "checkpoint": {"every": EVERY},
        "tracking": {"enabled": False},
        "run": {"dir": str(folder)},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Machines:
    """A head without CPUs, a node for the learner, and one for each of two rollout actors."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000, "_system_config": SYSTEM}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.learner = self._add("learner")
        self.rollouts = [self._add("rollout"), self._add("rollout")]

    def _add(self, kind: str) -> Any:
        return self._cluster.add_node(num_cpus=1, resources={kind: 1.0}, object_store_memory=100_000_000, wait=False)

    def replace(self, node: Any, kind: str) -> Any:
        """A new node for one that was lost; does not wait until it has joined."""
        self._cluster.remove_node(node, allow_graceful=False)  # what is left of it
        return self._add(kind)

    def settle(self) -> None:
        """Wait until all nodes have joined, and all losses are known."""
        self._cluster.wait_for_nodes(LIMIT_S)

    @property
    def environment(self) -> dict[str, str]:
        """Of those who use this cluster."""
        return os.environ | {"RAY_ADDRESS": self._cluster.address}

    def kill_head(self) -> None:
        """SIGKILL, both to the GCS and to the raylet."""
        kill(*(process_of(self._cluster.head_node, kind) for kind in ("gcs_server", "raylet")))

    def raylets_lost(self) -> list[Any]:
        """The nodes whose raylet has ended."""
        nodes = [self.learner, *self.rollouts]
        return [node for node in nodes if process_of(node, "raylet").poll() is not None]

    def end(self) -> None:
        """Of all nodes, with all that is left of those that were lost."""
        self._cluster.shutdown()


def process_of(node: Any, kind: str) -> subprocess.Popen[bytes]:
    """A node's raylet, or the head's GCS."""
    return node.all_processes[kind][0].process


def kill(*processes: subprocess.Popen[bytes]) -> None:
    """SIGKILL, all before any is waited for."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(30)


@dataclass(slots=True)
class Run:
    """A training run, its driver a process of its own whose output goes to a file."""

    folder: Path
    driver: subprocess.Popen[bytes]

    @classmethod
    def start(cls, machines: Machines, folder: Path, *arguments: str) -> Run:
        machines.settle()
        with folder.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "ray_jobs.train", *arguments]
            return cls(folder, subprocess.Popen(command, env=machines.environment, stdout=log, stderr=log))

    @property
    def step(self) -> int:
        return last_step(self.folder / "metrics.jsonl")

    @property
    def learner(self) -> LearnerPlace:
        return read_learners(self.folder)[0]

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Seconds until the condition held; the driver must not end before."""
        return until(lambda: condition() or self.driver.poll() is not None, f"{self.folder.name}: {what}")

    def end(self) -> float:
        """Seconds until the driver had ended."""
        return until(lambda: self.driver.poll() is not None, f"{self.folder.name}: the driver's end")


def lose_the_learners_node(machines: Machines, run: Run) -> dict[str, Any]:
    run.until(lambda: run.step > EVERY, "a checkpoint")
    before = run.learner
    kill(process_of(machines.learner, "raylet"))
    step = run.step
    gone_s = until(
        lambda: not alive(Victim(before.pid, started=before.started)), "the end of the learner without its raylet"
    )
    machines.learner = machines.replace(machines.learner, "learner")
    again_s = run.until(lambda: run.learner != before, "another learner")
    run.end()
    return {
        "step": step,
        "learner gone s": gone_s,
        "another learner s": again_s,
        "nodes": [before.node, run.learner.node],
        "resumed": run.learner.step,
        "status": run.driver.returncode,
    }


def have_chaos_take_a_rollout_node(machines: Machines, folder: Path, calm: Run) -> dict[str, Any]:
    """A new node comes as soon as it has."""
    machines.settle()
    command = [sys.executable, "-m", "bgrpo.cli.app", "chaos", "--undisturbed", str(calm.folder), "--json"]
    command += ["--faults", "remove-node", "--max-faults", "1", "--every", "1", f"run.dir={folder}", "run.name=chaos"]
    with (folder / "chaos.log").open("wb") as log:
        chaos = subprocess.Popen(command, env=machines.environment, stdout=log, stderr=log)
    until(lambda: machines.raylets_lost() or chaos.poll() is not None, "the fault")
    lost = machines.raylets_lost()
    for node in lost:
        machines.rollouts[machines.rollouts.index(node)] = machines.replace(node, "rollout")
    seconds = until(lambda: chaos.poll() is not None, "the end of bgrpo chaos")
    return {"nodes lost": len(lost), "end s": seconds, "status": chaos.returncode}


def lose_the_head(machines: Machines, run: Run) -> dict[str, Any]:
    run.until(lambda: run.step > EVERY, "a checkpoint")
    machines.kill_head()
    step = run.step
    end_s = run.end()
    nodes_s = until(lambda: len(machines.raylets_lost()) == 3, "the end of nodes without a head")
    return {
        "address": machines.environment["RAY_ADDRESS"],
        "step": step,
        "end s": end_s,
        "nodes end s": nodes_s,
        "finished": (run.folder / "policy").exists(),
        "status": run.driver.returncode,
    }


def main(folder: Path) -> None:
    config = write_config(folder)
    report: dict[str, Any] = {}

    def start(name: str) -> Run:
        return Run.start(machines, folder / name, "--config", str(config), f"run.name={name}")

    machines = Machines()
    try:
        calm = start("calm")
        report["calm s"] = calm.end()
        report["learner node"] = lose_the_learners_node(machines, start("learner-node"))
        report["chaos"] = have_chaos_take_a_rollout_node(machines, folder, calm)
        lost = start("head")
        report["head"] = lose_the_head(machines, lost)
    finally:
        machines.end()
    machines = Machines()
    try:
        resumed = Run.start(machines, lost.folder, "--resume", str(lost.folder))
        report["resumed"] = {"s": resumed.end(), "from": resumed.learner.step, "status": resumed.driver.returncode}
    finally:
        machines.end()
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
