"""Learners that hold shares of the weights make the update of one that holds them all, and write its checkpoints."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import train_config
from learner_worker import checkpointed, sharded_learner, train_cases
from learning.test_trainer_distributed import assert_same, run_learners
from safetensors.torch import load_file

from bgrpo.errors import UserError

SHARDED = {"workers": 2, "sharding": "full"}
ROLLOUT = {"prompts_per_step": 8, "skip_uninformative": True}
CASES: dict[str, dict[str, Any]] = {
    # the norm is clipped, and some cuts are empty on one learner
    "adamw": {"beta": 0.3, "max_grad_norm": 0.05, "weight_decay": 0.1, "micro_groups": 1, "num_iterations": 2},
    "sgd": {
        "optimizer": "sgd",
        "minibatches": 2,
        "gradient_checkpointing": True,
        "rollout_correction": {"kind": "mask"},
    },
    "moving reference": {"optimizer": "sgd", "beta": 0.3, "reference": {"sync_every": 1, "mixing": 0.5}},
    "bf16": {"optimizer": "sgd", "dtype": "bf16", "beta": 0.1, "micro_groups": 2},
}
ALONE = {name: {"rollout": ROLLOUT, "learner": learner} for name, learner in CASES.items()}
RESUMED: dict[str, Any] = {
    "steps": 4,
    "rollout": {"prompts_per_step": 8},
    "learner": {"beta": 0.3, "reference": {"sync_every": 2, "mixing": 0.5}},
    "checkpoint": {"every": 1},
}


def sharded(sections: dict[str, Any]) -> dict[str, Any]:
    return sections | {"learner": sections["learner"] | SHARDED}


def test_sharded_learners_update_as_one_and_go_on_with_its_checkpoints(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    alone = train_cases(tmp_path, ALONE)
    all_steps = checkpointed(tmp_path / "all steps", RESUMED, None)
    checkpointed(tmp_path / "saved by one", RESUMED | {"steps": 2}, None)
    cases = {name: sharded(sections) for name, sections in ALONE.items()}
    folder = tmp_path / "several"
    results = run_learners(processes, 2, folder, sharded_learner, cases, sharded(RESUMED))
    for name in CASES:
        for result in results:
            assert_same(result[name], alone[name], 1e-2 if name == "bf16" else 1e-6)
    assert sorted(results[0]["adamw"]["weights"]) == [0, 1, 2] and not results[1]["adamw"]["weights"]
    for version, weights in results[0]["adamw"]["weights"].items():
        torch.testing.assert_close(weights, alone["adamw"]["weights"][version].float(), rtol=1e-4, atol=1e-5)
    # a policy is saved and published in fp32
    torch.testing.assert_close(results[0]["went on"][4], all_steps[4].float(), rtol=0, atol=1e-4)
    after = checkpointed(tmp_path / "went on by one", RESUMED, folder / "saved")
    torch.testing.assert_close(after[4], all_steps[4], rtol=0, atol=1e-4)
    saved = [
        next(iter(sorted(path.glob("*2*/policy/*.safetensors"))))
        for path in (folder / "saved", tmp_path / "saved by one")
    ]
    ours, theirs = (load_file(path) for path in saved)
    assert ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)


@pytest.mark.parametrize(
    ("learner", "words"),
    [
        ({"workers": 1}, "workers=1"),
        ({"optimizer": "muon"}, "optimizer=muon"),
        ({"optimizer": "adafactor"}, "optimizer=adafactor"),
        ({"dtype": "pure_bf16"}, "dtype=pure_bf16"),
        ({"lora": {"rank": 2}}, "lora"),
        ({"kl_in_reward": True, "beta": 0.1}, "kl_in_reward"),
    ],
)
def test_what_cannot_be_sharded_is_refused(learner: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_config(rollout={"prompts_per_step": 8}, learner=SHARDED | learner)
