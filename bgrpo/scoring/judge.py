"""The judge of a run: from completions to verdicts and rewards, the same one in training, validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bgrpo.config import TrainConfig
from bgrpo.groups import Group, ScoredGroup, Verdict
from bgrpo.scoring.check_process import CheckProcess
from bgrpo.scoring.rewards import group_rewards
from bgrpo.tasks.base import Outcome, Problem

Check = Callable[[Sequence[tuple[str, str]]], Sequence[Verdict]]
"""Checks (prompt, completion) pairs of text, in order, as :meth:`bgrpo.scoring.check_process.CheckProcess.run` does."""

SHIPPED_TASK_MEMORY_BYTES = 4 * 1024**3


class Judge:
    """What a configuration says about right, wrong and reward.

    Args:
        config: its sections ``task``, ``reward`` and ``verifier`` are read, and the group size.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def start(self, trial: tuple[str, str] | None) -> CheckProcess:
        """The process that checks: with the user's reward function, or else the task's own check.

        Shipped tasks get a memory limit; a user's function or task may be a model of any size and gets none.

        Args:
            trial: what it is tried on, see :func:`trial_of`.

        Raises:
            UserError: the function or task cannot be imported, or fails there.
        """
        config = self._config
        timeout_s = config.verifier.timeout_s
        if config.reward.function is not None:
            return CheckProcess(config.reward.function, timeout_s=timeout_s, trial=trial)
        shipped = ":" not in config.task.name
        return CheckProcess(
            f"task:{config.task.name}",
            config.task.options,
            timeout_s,
            memory_bytes=SHIPPED_TASK_MEMORY_BYTES if shipped else None,
            trial=trial,
        )

    def rewards(self, verdicts: Sequence[Verdict]) -> list[float]:
        """Rewards of one group's completions, best beam first, see :func:`bgrpo.scoring.rewards.group_rewards`."""
        reward = self._config.reward
        return group_rewards(
            verdicts,
            self._config.reward_kind,
            reward.tau or float(self._config.rollout.group_size),
            reward.wrong_reward,
            reward.balance_negatives,
        )

    def score(
        self, indices: Sequence[int], groups: Sequence[Group], verdicts: Iterable[Verdict], version: int
    ) -> list[ScoredGroup]:
        """Join groups with the verdicts on :func:`finished_texts`.

        Args:
            indices: of the problems.
            groups: one per index.
            verdicts: of the finished completions of all groups, in order.
            version: policy version that decoded the groups.

        Raises:
            ValueError: more or fewer verdicts than finished completions.
        """
        return [
            ScoredGroup(
                prompt_ids=group.prompt_ids,
                completions=group.completions,
                rewards=self.rewards([completion.verdict for completion in group.completions if completion.verdict]),
                index=index,
                version=version,
            )
            for index, group in zip(indices, with_verdicts(groups, verdicts), strict=True)
        ]


def trial_of(problems: Sequence[Problem]) -> tuple[str, str] | None:
    """(prompt, completion) on which every check must come to a verdict: the first known answer, else an empty text.

    None where there are no problems.
    """
    tried = next((problem for problem in problems if problem.answer), problems[0] if problems else None)
    return None if tried is None else (tried.prompt, tried.answer)


def finished_texts(problems: Sequence[Problem], groups: Sequence[Group]) -> list[tuple[str, str]]:
    """(prompt, completion) texts of every finished completion, in order: what there is to check."""
    return [
        (problem.prompt, completion.text)
        for problem, group in zip(problems, groups, strict=True)
        for completion in group.completions
        if completion.finished
    ]


def with_verdicts(groups: Sequence[Group], verdicts: Iterable[Verdict]) -> list[Group]:
    """The groups with the verdicts on :func:`finished_texts`; an unfinished completion is ``truncated``, unchecked.

    Raises:
        ValueError: more or fewer verdicts than finished completions.
    """
    remaining = iter(verdicts)
    judged = []
    for group in groups:
        completions = []
        for completion in group.completions:
            verdict = next(remaining, None) if completion.finished else Verdict(Outcome.TRUNCATED)
            if verdict is None:
                raise ValueError("fewer verdicts than finished completions")
            completions.append(replace(completion, verdict=verdict))
        judged.append(replace(group, completions=completions))
    if next(remaining, None) is not None:
        raise ValueError("more verdicts than finished completions")
    return judged
