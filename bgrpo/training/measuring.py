"""A policy and a judge in this process, tried on the problems that they are to be measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bgrpo.config import TrainConfig
from bgrpo.evaluation.decoders import LocalDecoder
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.preparation import check_prompts
from bgrpo.scoring.attempts import trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem


@contextmanager
def judged_decoder(
    policy: LoadedPolicy, config: TrainConfig, problems: Sequence[Problem], max_new_tokens: int, where: str, option: str
) -> Iterator[LocalDecoder]:
    """What decodes and judges, while the block runs.

    Args:
        policy: decodes.
        config: says how completions are judged.
        problems: to be decoded.
        max_new_tokens: longest completion.
        where: the problems came from, for messages.
        option: that gives ``max_new_tokens``, for messages.

    Raises:
        UserError: a prompt cannot be read or is too long, or what judges fails.
    """
    if problems:  # evaluating none is refused by name
        check_prompts(problems, policy, max_new_tokens, where, option)
    with Judge(config).start(trial_of(problems)) as checks:
        rollout = config.rollout
        yield LocalDecoder(policy, checks.judge, max_new_tokens, rollout.dtype, rollout.engine)
