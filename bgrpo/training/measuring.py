"""A policy and a judge in this process, tried on the problems that they are to be measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bgrpo.config import TrainConfig
from bgrpo.evaluation.decoders import LocalDecoder
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.prompt_lengths import fit_prompts
from bgrpo.scoring.attempts import trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Problem


@contextmanager
def judged_decoder(
    policy: LoadedPolicy,
    config: TrainConfig,
    problems: Sequence[Problem],
    max_new_tokens: int,
    where: str,
    option: str,
    tell: Callable[[str], None],
) -> Iterator[tuple[LocalDecoder, list[Problem]]]:
    """What decodes and judges, while the block runs, and the problems whose prompts the policy can read.

    Args:
        policy: decodes.
        config: says how completions are judged, and what becomes of long prompts.
        problems: to be decoded.
        max_new_tokens: longest completion.
        where: the problems came from, for messages.
        option: that gives ``max_new_tokens``, for messages.
        tell: called with a line that says which prompts were too long, if any were and that is no error.

    Raises:
        UserError: a prompt cannot be read or is too long, or what judges fails.
    """
    readable = list(problems)
    if problems:  # evaluating none is refused by name
        fitted = fit_prompts(problems, policy, config.rollout, where, max_new_tokens, option)
        readable = fitted.problems
        if fitted.note:
            tell(fitted.note)
    judge = Judge(config)
    with judge.start(trial_of(readable)) as checks:
        judge.check_applies(checks, readable)
        temperature = config.evaluation.temperature
        yield LocalDecoder(policy, checks.judge, max_new_tokens, config.rollout, temperature), readable
