"""A run with several learners makes the update of a run with one."""

from __future__ import annotations

import socket
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_worker import learner, train

GROUP_SIZE = 45  # more than the vocabulary of 31
CASES: dict[str, dict[str, Any]] = {
    # twelve prompts: some groups fall out, so learners hold unequal shares and some cuts are empty
    "ragged shares": {
        "rollout": {"group_size": GROUP_SIZE, "prompts_per_step": 12, "skip_uninformative": True},
        "learner": {"minibatches": 2, "num_iterations": 2, "micro_groups": 1},
        "reward": {"kind": "simple"},
        "advantage": {"kind": "batch"},
    },
    "rollouts ahead": {
        "rollout": {"group_size": GROUP_SIZE, "prompts_per_step": 12, "max_staleness": 1, "skip_uninformative": True},
        "learner": {"minibatches": 2, "micro_groups": 1},
        "reward": {"kind": "simple"},
    },
    "whole shares": {"rollout": {"group_size": GROUP_SIZE, "prompts_per_step": 12}, "learner": {"beta": 0.0}},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """A configuration, and what one learner makes of it."""
    sections = CASES[request.param]
    return sections, train(tmp_path_factory.mktemp("alone"), sections, GROUP_SIZE)


def run_learners(
    processes: ForkServerContext, count: int, folder: Path, sections: dict[str, Any]
) -> list[dict[str, Any]]:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        processes.Process(target=learner, args=(rank, count, port, folder, sections, GROUP_SIZE), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.kill()
    assert not alive and [child.exitcode for child in children] == [0] * count
    return [torch.load(folder / f"learner-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_several_learners_update_as_one(tmp_path: Path, processes: ForkServerContext, case: Any, count: int) -> None:
    sections, alone = case
    results = run_learners(processes, count, tmp_path / "several", sections)
    for result in results:
        assert len(result["gradients"]) == len(alone["gradients"])
        for gradient, expected in zip(result["gradients"], alone["gradients"], strict=True):
            assert (gradient - expected).norm() < 1e-6 * expected.norm()
        for metrics, expected_metrics in zip(result["steps"], alone["steps"], strict=True):
            same = [name for name in metrics if not name.startswith(("seconds", "rollouts_per_s", "used/seconds"))]
            assert {n: metrics[n] for n in same} == pytest.approx({n: expected_metrics[n] for n in same}, rel=1e-4)
    first = results[0]
    assert sorted(first["weights"]) == [0, 1, 2], "learner 0 publishes"
    assert all(not result["weights"] for result in results[1:]), "only learner 0 publishes"
