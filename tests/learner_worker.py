"""What learners do in processes of their own, forked from a server that has loaded the libraries once."""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from decoding.tiny_encoder_decoders import tiny_encoder_decoder
from learner_cases import VOCABULARY, ScriptedSource, make_trainer, tiny_policy, train_config

import bgrpo.learning.trainer  # noqa: F401  # loaded by the fork server
from bgrpo.learning.learner_state import policy_folder
from bgrpo.learning.starting_point import attached
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder

gc.freeze()  # what the server has loaded is shared by its children, and never garbage: their trainers collect it all


def train(
    folder: Path, sections: dict[str, Any], group_size: int, source: ScriptedSource | None = None
) -> dict[str, Any]:
    """Run one learner; what it published, its gradients and its metrics. ``encoder`` in place of a section: a T5."""
    source, steps = source or ScriptedSource(group_size), []
    source.passages = "encoder" in sections
    config = train_config(**{name: section for name, section in sections.items() if name != "encoder"})
    policy = tiny_encoder_decoder("t5 untied", VOCABULARY) if source.passages else tiny_policy()
    policy = policy.double() if config.learner.dtype == "fp32" else policy
    if config.learner.lora.is_on:
        policy = attached(config, policy)
    trainer = make_trainer(config, source, folder, policy=policy, on_step=steps.append, problems=50)
    trainer.run()
    return {"weights": source.weights, "gradients": trainer.gradients, "steps": steps}


def learner(rank: int, world_size: int, port: int, folder: Path, sections: dict[str, Any], group_size: int) -> None:
    """Process entry: joins a gloo group as Ray Train would have it, trains, writes the result beside the others."""
    _join(rank, world_size, port)
    torch.save(train(folder, sections, group_size), folder / f"learner-{rank}.pt")
    dist.destroy_process_group()


def learner_of_cases(rank: int, world_size: int, port: int, folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Process entry: as :func:`learner`, one training run after another; see :func:`train_cases`."""
    _join(rank, world_size, port)
    torch.save(train_cases(folder, cases), folder / f"learner-{rank}.pt")
    dist.destroy_process_group()


def train_cases(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What each configuration comes to where many groups teach nothing and many completions are cut off."""

    def outcome(rng: random.Random) -> str:
        return "correct" if rng.random() < 0.15 else "wrong"

    return {name: train(folder, case, 5, ScriptedSource(5, outcome, cut_off=0.3)) for name, case in cases.items()}


def sharded_learner(
    rank: int, world_size: int, port: int, folder: Path, cases: dict[str, dict[str, Any]], resumed: dict[str, Any]
) -> None:
    """Process entry: updates by shards; then a run that saves its checkpoints, and one that goes on from another's."""
    _join(rank, world_size, port)
    found: dict[str, Any] = train_cases(folder, cases)
    found["goes on"] = checkpointed(folder / "saved", resumed | {"steps": 2}, None)
    found["went on"] = checkpointed(folder / "saved here", resumed, folder.parent / "saved by one")
    torch.save(found, folder / f"learner-{rank}.pt")
    dist.destroy_process_group()


def checkpointed(folder: Path, sections: dict[str, Any], start: Path | None) -> dict[str, Any]:
    """What a learner publishes that saves each step, from another run's newest checkpoint on if there is one."""
    resume = None if start is None else CheckpointStore(start, keep=9).latest()
    source = ScriptedSource()
    make_trainer(
        train_config(**sections),
        source,
        folder / "trl",
        policy=(tiny_policy() if resume is None else load_policy(str(policy_folder(resume))).model).double(),
        reference=tiny_policy().double(),
        store=CheckpointStore(folder, keep=9),
        resume=resume,
    ).run()
    return source.weights


def _join(rank: int, world_size: int, port: int) -> None:
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


def resuming_learner(folder: Path, sections: dict[str, Any]) -> None:
    """Process entry: goes on from the newest complete checkpoint of a run; what it says goes into the run's ``log``."""
    sys.stdout = sys.stderr = (folder / "log").open("a", buffering=1)
    torch.set_num_threads(1)
    run = RunFolder(folder)
    store = CheckpointStore(run.checkpoints, keep=2)
    latest = store.latest()
    run.truncate_after(0 if latest is None else store.step_of(latest))
    make_trainer(
        train_config(**sections),
        ScriptedSource(),
        folder / "trl",
        policy=tiny_policy() if latest is None else load_policy(str(policy_folder(latest))).model,
        reference=None if latest is None else tiny_policy(),
        store=store,
        resume=latest,
        on_step=lambda metrics: run.append_metrics(int(metrics["step"]), metrics),
    ).run()
