"""Everything that can be wrong with a run's input is found here, before any process starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.text import longest_text
from bgrpo.runs.run_folder import RunFolder
from bgrpo.scoring.check_child import load_check
from bgrpo.tasks.base import Problem, Progress, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import Splits, load_splits

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


def check_input(config: TrainConfig, splits: Splits | None = None, progress: Progress | None = None) -> Preparation:
    """Load and check the policy, the problems and the reward function.

    Args:
        config: of the run.
        splits: the problems of a run that goes on; else they are read or generated.
        progress: called while large files are read.

    Raises:
        UserError: what is wrong, where, and what would be right.
    """
    policy = load_policy(config.policy.path)
    if config.reward.function is not None:
        load_check(config.reward.function, {})
    task = load_task(config.task.name, config.task.options)
    splits = splits or load_splits(task, config.task, progress)
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
    train, validation, test = (read_problems(folder.data / f"{name}.jsonl") for name in SPLITS)
    return Splits(train, validation, test)


def _check_prompts(problems: Sequence[Problem], policy: LoadedPolicy, max_new_tokens: int, where: str) -> None:
    """Refuse unknown tokens, and prompts that leave no room for an answer."""
    try:
        longest, tokens = longest_text(policy.tokenizer, [problem.prompt for problem in problems])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    context = getattr(policy.model.config, "max_position_embeddings", None)
    if context is not None and tokens + max_new_tokens > context:
        raise UserError(
            f"{where}: problem {longest + 1} has {tokens} tokens + rollout.max_new_tokens={max_new_tokens} "
            f"= {tokens + max_new_tokens}, but the policy's context is {context}: leave long problems out, "
            f"or take fewer new tokens"
        )
