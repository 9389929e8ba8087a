"""Everything that can be wrong with a run's input is found here, before any process starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.text import encode_texts
from bgrpo.runs.further_trackers import check_installed
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.check_child import load_check
from bgrpo.tasks.base import Problem, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import Splits, load_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SPLITS = ("train", "validation", "test")


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
    check_installed(config.tracking.also)
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
