"""Everything that can be wrong with a run's input is found here, before any process starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.files import sha256
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.text import encode_texts
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.check_child import load_check
from bgrpo.tasks.base import Problem, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import Splits, load_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SPLITS = ("train", "validation", "test")
CHECKPOINT_BYTES = 12
"""Of a checkpoint for each weight: fp32, and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """The checked input of a run.

    Attributes:
        policy: the starting policy.
        splits: disjoint problems, whose prompts the policy can read.
    """

    policy: LoadedPolicy
    splits: Splits


def check_input(config: TrainConfig, splits: Splits | None = None) -> Preparation:
    """Load and check the policy, the problems and the reward function.

    Args:
        config: of the run.
        splits: the problems of a run that goes on; else they are read or generated.

    Raises:
        UserError: what is wrong, where, and what would be right.
    """
    policy = load_policy(config.policy.path)
    if config.reward.function is not None:
        load_check(config.reward.function, {})
    task = load_task(config.task.name, config.task.options)
    splits = splits or load_splits(task, config.task)
    for name in SPLITS:
        _check_prompts(getattr(splits, name), policy, config.rollout.max_new_tokens, f"task.{name}")
    if len(splits.train) < config.rollout.prompts_per_step:
        raise UserError(
            f"task.train has {len(splits.train)} problems, fewer than rollout.prompts_per_step="
            f"{config.rollout.prompts_per_step}: give more problems or take fewer prompts per step"
        )
    return Preparation(policy, splits)


def checkpoint_room(policy: LoadedPolicy) -> int:
    """Bytes that the disk must have for one checkpoint and the final policy."""
    return (CHECKPOINT_BYTES + 4) * sum(weight.numel() for weight in policy.model.parameters())


def record_input(folder: RunFolder, policy: LoadedPolicy | None) -> None:
    """Keep digests of what a run computes its result from, in ``run.json``: ``policy`` and the files in ``data/``."""
    folder.update(inputs=_digests(folder, policy))


def check_same_input(folder: RunFolder, policy: LoadedPolicy | None) -> None:
    """Refuse to go on with a run from other input than it began with. A run without digests has nothing to compare.

    Args:
        folder: of the run.
        policy: the one that the run starts from, which is the reference of the KL term; None where there is none.

    Raises:
        UserError: names what has changed.
    """
    saved, now = folder.info().get("inputs") or {}, _digests(folder, policy)
    changed = [name for name in sorted(saved) if saved[name] != now.get(name)] if isinstance(saved, dict) else []
    if changed:
        where = policy.path if policy is not None and changed[0] == "policy" else folder.path / changed[0]
        raise UserError(
            f"run {folder.name} cannot be resumed: its {changed[0]} ({where}) is not what it was started with: put it "
            f"back, or start a new run"
        )


def _digests(folder: RunFolder, policy: LoadedPolicy | None) -> dict[str, str]:
    found = {f"data/{path.name}": sha256(path) for path in sorted(folder.data.iterdir()) if path.is_file()}
    if policy is not None:
        digest = hashlib.sha256(flatten_parameters(policy.model).data)
        digest.update(repr(sorted(policy.tokenizer.get_vocab().items())).encode())
        found["policy"] = digest.hexdigest()
    return found


def save_problems(splits: Splits, folder: RunFolder) -> None:
    """Keep the problems in the run folder."""
    for name in SPLITS:
        write_problems(folder.data / f"{name}.jsonl", getattr(splits, name))


def load_problems(folder: RunFolder) -> Splits:
    """The problems that :func:`save_problems` kept."""
    return Splits(*(read_problems(folder.data / f"{name}.jsonl") for name in SPLITS))


def _check_prompts(problems: Sequence[Problem], policy: LoadedPolicy, max_new_tokens: int, where: str) -> None:
    """Refuse unknown tokens, and prompts that leave no room for an answer."""
    ids = _encode(policy.tokenizer, [problem.prompt for problem in problems], where)
    context = getattr(policy.model.config, "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if context is not None and len(ids[longest]) + max_new_tokens > context:
        raise UserError(
            f"{where}: problem {longest + 1} has {len(ids[longest])} tokens + rollout.max_new_tokens={max_new_tokens} "
            f"= {len(ids[longest]) + max_new_tokens}, but the policy's context is {context}: leave long problems out, "
            f"or take fewer new tokens"
        )


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], where: str) -> list[list[int]]:
    try:
        return encode_texts(tokenizer, texts)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
