"""The learner's part of a checkpoint: policy, optimizer, schedule, rollouts made ahead, and the order of prompts."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError, reading
from bgrpo.files import parse_object
from bgrpo.groups import Completion, ScoredGroup, Verdict
from bgrpo.learning.batch import check_drawn
from bgrpo.learning.prompt_order import indices_of_draw
from bgrpo.learning.sharding import own_state
from bgrpo.policies.adapter_files import CONFIG as ADAPTER_CONFIG
from bgrpo.policies.adapter_files import is_adapter, read_adapter
from bgrpo.policies.io import load_policy, write_policy
from bgrpo.policies.lora import set_adapter
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder

_OPTIMIZER_FILE = "optimizer.pt"
_RUN_FILE = "run.json"
_AHEAD_FILE = "rollouts.json"
_REFERENCE = "reference"
_REQUIRED = (_OPTIMIZER_FILE, _RUN_FILE)
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
)
"""What reading a file raises that holds something else; a nesting too deep is a RuntimeError."""


def training_store(config: TrainConfig, folder: RunFolder) -> CheckpointStore:
    """The checkpoints of a training run."""
    required = (f"policy/{ADAPTER_CONFIG if config.learner.lora.is_on else 'config.json'}", *_REQUIRED)
    return CheckpointStore(folder.checkpoints, config.checkpoint.keep, required, folder.check_owner)


def policy_folder(checkpoint: Path) -> Path:
    """The checkpoint's policy, in Hugging Face format; where an adapter is learned, that, in peft's."""
    return checkpoint / "policy"


def policy_of_run(folder: RunFolder) -> Path:
    """The policy that a run trained; of one that has not finished, that of its newest checkpoint.

    Raises:
        UserError: there is none yet.
    """
    if folder.policy.is_dir():
        return folder.policy
    newest = training_store(folder.load_config(TrainConfig), folder).latest()
    if newest is None:
        raise UserError(f"run {folder.name} ({folder.status}) has no policy yet: it has saved no checkpoint")
    return policy_folder(newest)


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer_state: Mapping[str, Any],
    scheduler: LRScheduler,
    config: TrainConfig,
    problems: int,
    ahead: Mapping[int, Sequence[ScoredGroup]] | None = None,
    reference: PreTrainedModel | None = None,
) -> None:
    """Fill a checkpoint folder. No random state is kept: every draw is a pure function of seed, step and index.

    Args:
        folder: to fill.
        model: the policy; where it learns an adapter, only that is kept, and the optimizer's state of it.
        tokenizer: of the policy.
        optimizer_state: of all weights.
        scheduler: its state is kept.
        config: of the run.
        problems: number of training problems.
        ahead: groups of the next steps, by step, that other weights than the checkpoint's decoded.
        reference: of the KL, where it is not the starting policy any more.

    Raises:
        OSError: the disk is full or not writable.
    """
    policy_folder(folder).mkdir()
    write_policy(model, tokenizer, policy_folder(folder))
    if reference is not None:
        (folder / _REFERENCE).mkdir()
        write_policy(reference, tokenizer, folder / _REFERENCE)
    buffer = io.BytesIO()  # torch.save to a file reports a full disk as a bare RuntimeError
    torch.save({"optimizer": optimizer_state, "scheduler": scheduler.state_dict()}, buffer)
    (folder / _OPTIMIZER_FILE).write_bytes(buffer.getbuffer())
    (folder / _RUN_FILE).write_text(json.dumps(_order_of_prompts(config, problems), indent=1), "utf-8")
    if ahead:
        steps = [[asdict(group) for group in ahead[step]] for step in sorted(ahead)]
        (folder / _AHEAD_FILE).write_text(json.dumps(steps), "utf-8")


def check_resumable(checkpoint: Path, config: TrainConfig, problems: int) -> None:
    """A resumed run must see the prompts that come next.

    Raises:
        UserError: the checkpoint was made with another seed, number of problems, or cut of the prompt stream, or not
            by a training run.
    """
    if not (checkpoint / _RUN_FILE).is_file():
        raise UserError(f"{checkpoint}: {_RUN_FILE} is missing, so this is not a training run's checkpoint to resume")
    try:
        saved = parse_object((checkpoint / _RUN_FILE).read_bytes())
    except _DAMAGE as error:
        raise UserError(
            f"{checkpoint / _RUN_FILE}: cannot be read ({error}); remove this checkpoint to resume from the one before"
        ) from error
    for key, now in _order_of_prompts(config, problems).items():
        if saved.get(key) != now:
            raise UserError(
                f"{checkpoint}: saved with {key}={saved.get(key)}, but the run has {key}={now}, so its prompts would "
                f"not continue: resume with {key}={saved.get(key)}, or start a new run with policy.path={checkpoint}"
                f"/policy"
            )


def load_learner_state(checkpoint: Path, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Restore optimizer and schedule in place. Nothing in the file is run.

    Raises:
        UserError: the file is damaged, or holds other objects than tensors and numbers.
    """
    path = checkpoint / _OPTIMIZER_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(own_state(state["optimizer"], optimizer))
        scheduler.load_state_dict(state["scheduler"])
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: holds no optimizer state, or more than that ({reason}); remove this checkpoint to resume from "
            f"the one before it"
        ) from error


def load_reference(checkpoint: Path, reference: PreTrainedModel) -> None:
    """Give ``reference`` the weights that the checkpoint has for it, if any: else it has not moved.

    Raises:
        UserError: they cannot be read.
    """
    folder = checkpoint / _REFERENCE
    if not folder.is_dir():
        return
    if is_adapter(folder):
        load_adapter(folder, reference)
    else:
        reference.load_state_dict(load_policy(str(folder)).model.state_dict())


def load_adapter(folder: Path, model: PreTrainedModel) -> None:
    """Give a model of :func:`bgrpo.policies.lora.attach` the adapter of a checkpoint.

    Raises:
        UserError: it cannot be read, or is of other layers.
    """
    with reading(f"{folder}: cannot be loaded"):
        set_adapter(model, read_adapter(folder)[1])


def load_groups_ahead(checkpoint: Path, config: TrainConfig, step: int, problems: int) -> dict[int, list[ScoredGroup]]:
    """The groups from ``step`` on that :func:`write_checkpoint` was given, equal to the last bit; by step.

    Raises:
        UserError: they are not the groups that these steps come to.
    """
    path = checkpoint / _AHEAD_FILE
    if not path.exists():
        return {}
    staleness = config.rollout.max_staleness
    try:
        records = json.loads(path.read_text("utf-8"))
        if records and "outcomes" in records[0]:
            raise UserError(
                f"{path}: written by an earlier bgrpo, whose rollouts held no rewards: start a new run with "
                f"policy.path={policy_folder(checkpoint)}"
            )
        steps = [records] if records and isinstance(records[0], dict) else records  # of one step: an earlier layout
        ahead = {step + i: [_read_group(record) for record in of_step] for i, of_step in enumerate(steps)}
        if not 1 <= len(ahead) <= staleness:
            raise ValueError(f"it holds {len(ahead)} steps")
        for of_step, groups in ahead.items():
            _check_ahead(groups, config, of_step, step, problems)
    except _DAMAGE as error:
        raise UserError(
            f"{path}: not the rollouts of step {step} that a run with rollout.max_staleness={staleness} goes on with "
            f"({error}); remove this checkpoint to resume from the one before it"
        ) from error
    return ahead


def _check_ahead(groups: list[ScoredGroup], config: TrainConfig, step: int, resumed: int, problems: int) -> None:
    """Whether these can be what was decoded for ``step`` before the weights of step ``resumed`` were there."""
    version, size = groups[0].version, config.rollout.prompts_per_step
    if not step - config.rollout.max_staleness <= version < resumed:
        raise ValueError(f"step {step} was decoded by version {version}")
    for draw, start in enumerate(range(0, len(groups), size)):
        check_drawn(groups[start : start + size], indices_of_draw(config, step, problems, draw), step, version)


def _read_group(record: dict[str, Any]) -> ScoredGroup:
    completions = [
        Completion(**(completion | {"verdict": Verdict(**completion["verdict"])}))
        for completion in record["completions"]
    ]
    return ScoredGroup(**(record | {"completions": completions}))


def _order_of_prompts(config: TrainConfig, problems: int) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "problems": problems,
        "rollout.prompts_per_step": config.rollout.prompts_per_step,
        "rollout.max_extra_draws": config.rollout.max_extra_draws,
        "learner.num_iterations": config.learner.num_iterations,
        "learner.minibatches": config.learner.minibatches,
    }
