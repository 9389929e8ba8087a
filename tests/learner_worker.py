"""One learner of a data-parallel run on this machine; imported by a fork server, so that the libraries load once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

import bgrpo.learning.trainer  # noqa: F401  # loaded by the fork server


def train(folder: Path, sections: dict[str, Any], group_size: int) -> dict[str, Any]:
    """Run one learner; what it published, its gradients and its metrics."""
    source, steps = ScriptedSource(group_size), []
    trainer = make_trainer(
        train_config(**sections), source, folder, policy=tiny_policy().double(), on_step=steps.append, problems=50
    )
    trainer.run()
    return {"weights": source.weights, "gradients": trainer.gradients, "steps": steps}


def learner(rank: int, world_size: int, port: int, folder: Path, sections: dict[str, Any], group_size: int) -> None:
    """Process entry: joins a gloo group as Ray Train would have it, trains, writes the result beside the others."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.save(train(folder, sections, group_size), folder / f"learner-{rank}.pt")
    dist.destroy_process_group()
