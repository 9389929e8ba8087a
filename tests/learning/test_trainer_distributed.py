"""A run with several learners makes the update of a run with one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_worker import learner, learner_of_cases, train, train_cases

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
    "an encoder-decoder": {
        "rollout": {"group_size": 5, "prompts_per_step": 6, "skip_uninformative": True},
        "learner": {"micro_groups": 1},
        "encoder": True,
    },
    "whole shares": {"rollout": {"group_size": GROUP_SIZE, "prompts_per_step": 12}, "learner": {"beta": 0.0}},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """A configuration, and what one learner makes of it."""
    sections = CASES[request.param]
    return sections, train(tmp_path_factory.mktemp("alone"), sections, GROUP_SIZE)


OF_LEARNER: dict[str, dict[str, Any]] = {
    "GSPO": {"loss": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.01, "mask_truncated": True},
    "grpo": {"loss": "grpo", "top_entropy_quantile": 0.4, "entropy_coef": 0.1, "mask_truncated": True},
    "dr_grpo": {"loss": "dr_grpo", "kl_estimator": "k2", "beta": 0.3, "mask_truncated": True},
    "dapo": {"loss": "dapo", "kl_in_reward": True, "beta": 0.3, "reference": {"sync_every": 1, "mixing": 0.5}},
    "bnpo": {"loss": "bnpo", "kl_estimator": "k1", "beta": 0.3, "entropy_coef": 0.1, "mask_truncated": True},
    "cispo": {"loss": "cispo", "rollout_correction": {"kind": "mask", "low": 0.05, "high": 1.0}},
    "sapo": {"loss": "sapo", "rollout_correction": {"kind": "truncate", "level": "sequence"}},
    "luspo": {"loss": "luspo", "mask_truncated": True},
    "vespo": {"loss": "vespo", "mask_truncated": True},
    "lora": {"lora": {"rank": 2}, "beta": 0.3, "reference": {"sync_every": 1, "mixing": 1.0}},
}
LOSS_CASES = {
    name: {
        "rollout": {"prompts_per_step": 8, "skip_uninformative": True},
        "learner": {"num_iterations": 2, "minibatches": 1, "micro_groups": 1, "max_kl": 1e6} | options,
    }
    for name, options in OF_LEARNER.items()
}


def run_learners(
    processes: ForkServerContext, count: int, folder: Path, entry: Callable[..., None], *arguments: Any
) -> list[dict[str, Any]]:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        processes.Process(target=entry, args=(rank, count, port, folder, *arguments), daemon=True)
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


def assert_same(result: dict[str, Any], alone: dict[str, Any], tolerance: float = 1e-6) -> None:
    """Gradients and metrics of a learner among several, against those of a single one."""
    assert len(result["gradients"]) == len(alone["gradients"])
    for gradient, expected in zip(result["gradients"], alone["gradients"], strict=True):
        assert (gradient - expected).norm() < tolerance * expected.norm()
    for metrics, expected_metrics in zip(result["steps"], alone["steps"], strict=True):
        same = [name for name in metrics if not name.startswith(("seconds", "rollouts_per_s", "used/seconds"))]
        assert {n: metrics[n] for n in same} == pytest.approx(
            {n: expected_metrics[n] for n in same}, rel=100 * tolerance, abs=tolerance
        )


@pytest.mark.parametrize("count", [2, 3])
def test_several_learners_update_as_one(tmp_path: Path, processes: ForkServerContext, case: Any, count: int) -> None:
    sections, alone = case
    results = run_learners(processes, count, tmp_path / "several", learner, sections, GROUP_SIZE)
    for result in results:
        assert_same(result, alone)
    first = results[0]
    assert sorted(first["weights"]) == [0, 1, 2], "learner 0 publishes"
    assert all(not result["weights"] for result in results[1:]), "only learner 0 publishes"


def test_two_learners_update_as_one_whatever_the_loss(tmp_path: Path, processes: ForkServerContext) -> None:
    """Losses that average over completions, cuts that one learner has and the other has not, completions left out."""
    alone = train_cases(tmp_path, LOSS_CASES)
    used = [step["groups_used"] for step in alone["dapo"]["steps"]]
    assert any(count % 2 for count in used), f"{used} groups: the learners hold equal shares"
    results = run_learners(processes, 2, tmp_path / "several", learner_of_cases, LOSS_CASES)
    for name in LOSS_CASES:
        for result in results:
            assert_same(result[name], alone[name])


def test_two_learners_in_bf16_update_as_one(tmp_path: Path, processes: ForkServerContext) -> None:
    """To bf16's precision, of 1/256: a learner's share of the gradient is rounded before it is added to the other's."""
    options = {"micro_groups": 2, "warmup_steps": 0, "beta": 0.1}
    cases = {
        dtype: {"rollout": {"prompts_per_step": 8}, "learner": options | {"dtype": dtype, "optimizer": "sgd"}}
        for dtype in ("bf16", "pure_bf16")
    }
    alone = train_cases(tmp_path, cases)
    results = run_learners(processes, 2, tmp_path / "several", learner_of_cases, cases)
    for dtype in cases:
        for result in results:
            assert_same(result[dtype], alone[dtype], 1e-2)
        first, second = (result[dtype]["gradients"] for result in results)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
