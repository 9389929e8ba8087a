"""How long a training step takes here, from a short probe: real requests are decoded, scored and learned from.

Both begin with next to nothing and double, first the tokens, then the prompts, while the next size fits into the time
that is left. What is measured at the largest size is scaled to a step's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import torch

from bgrpo.config import TrainConfig
from bgrpo.decoding.support import service_of
from bgrpo.groups import ScoredGroup, Verdict
from bgrpo.learning.batch import choose_groups
from bgrpo.learning.padded_rows import LayOut, lay_out_of
from bgrpo.learning.replica import weights_of
from bgrpo.learning.rollout_source import torch_threads
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.runs.budget import Spent, expected_steps
from bgrpo.runs.prompt_lengths import fit_prompts
from bgrpo.scoring.attempts import Attempt, trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.base import Outcome, Problem
from bgrpo.training.update_probe import (
    ProbeSource,
    all_used,
    growing_sizes,
    probe_updates,
    shortened,
    tokens_of,
    update_s,
)

PROBE_S = 60.0
_SHARE = 0.45  # of the time that is there for decoding, and for learning
_UNKNOWN = Verdict(Outcome.CORRECT)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Of one step in one process here: seconds.

    Attributes:
        rollouts: decoding, of all draws.
        scoring: None where it is not known.
        weights: handing the new weights to what decodes.
        update: reference, forward and backward passes, optimizer.
        steps: that the run makes, as far as its budget reaches.
        prompts: that were decoded.
        completion_tokens: mean tokens of a completion; where the probe cut them off, as if all went on to the end.
        is_cut: whether it did.
        took: seconds of the probe.
    """

    rollouts: float
    scoring: float | None
    weights: float
    update: float
    steps: int
    prompts: int
    completion_tokens: float
    is_cut: bool
    took: float

    @property
    def step(self) -> float:
        """All of it."""
        return self.rollouts + (self.scoring or 0.0) + self.weights + self.update

    @property
    def run(self) -> float:
        """All steps, without validations and checkpoints."""
        return self.steps * self.step


def probe_step(config: TrainConfig, problems: Sequence[Problem], limit_s: float = PROBE_S) -> StepTime:
    """Decode, score and learn a little, and tell what a step takes.

    Args:
        config: of the run, which is taken as one in this process, whatever its numbers of processes.
        problems: some of its training problems.
        limit_s: for everything; what takes longer at the smallest size takes longer.

    Raises:
        UserError: as a run would.
    """
    begun = time.perf_counter()
    learner = config.learner
    start = load_policy(config.policy.path)
    fitted = fit_prompts(problems, start, config.rollout, "the probe's prompts").problems
    check = _TimedCheck(config, fitted)
    with check, torch_threads(learner.threads or len(os.sched_getaffinity(0))), torch.random.fork_rng():
        source = ProbeSource(fitted, config, check, start)
        left = limit_s - (time.perf_counter() - begun)
        decoded = _decode(source, config, start, len(fitted), left * _SHARE, check)
        left = limit_s - (time.perf_counter() - begun)
        lay_out = lay_out_of(service_of(start.model, config.rollout.engine))
        size = _StepSize.of(config, decoded, lay_out, known=check.knows)
        updates = probe_updates(source, config, start, decoded.groups, lay_out, left * 2 * _SHARE)
    prompts = size.draws * config.rollout.prompts_per_step
    one_step = StepTime(
        rollouts=decoded.prompt_s * prompts,
        scoring=check.each_s * prompts * config.rollout.group_size if check.knows else None,
        weights=decoded.load_s + median(one.weights for one in updates),
        update=update_s(updates, size.tokens),
        steps=config.steps,
        prompts=decoded.prompts,
        completion_tokens=size.completion_tokens,
        is_cut=decoded.cut is not None,
        took=time.perf_counter() - begun,
    )
    completions = prompts * config.rollout.group_size
    spent = Spent(
        1, config.optimizer_steps_per_step, completions, round(completions * size.completion_tokens), one_step.step
    )
    return replace(one_step, steps=max(1, round(expected_steps(config, spent, 1))))


class _TimedCheck:
    """What scores, timed. Servers are not asked: each answer may cost something."""

    def __init__(self, config: TrainConfig, problems: Sequence[Problem]) -> None:
        self.knows = all(part.source != "url" for part in config.reward.named_parts.values())
        self._scorer = None
        if self.knows:
            with torch_threads(config.reward_model.threads):
                self._scorer = Judge(config).start(trial_of(problems))
        self.seconds, self._asked = 0.0, 0

    def __call__(self, attempts: Sequence[Attempt]) -> Sequence[Verdict]:
        if self._scorer is None:
            return [_UNKNOWN] * len(attempts)
        start = time.perf_counter()
        verdicts = self._scorer.judge(attempts)
        self.seconds += time.perf_counter() - start
        self._asked += len(attempts)
        return verdicts

    @property
    def each_s(self) -> float:
        """Of one completion."""
        return self.seconds / max(1, self._asked)

    def forget(self) -> None:
        """Of what was cut short, little is to check."""
        self.seconds, self._asked = 0.0, 0

    def __enter__(self) -> _TimedCheck:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._scorer is not None:
            self._scorer.close()


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What was decoded at the largest size.

    Attributes:
        groups: all of that size.
        prompt_s: seconds for one prompt of a whole request, scoring left out.
        load_s: seconds until new weights decode.
        prompts: of all of that size.
        cut: tokens that completions were cut to, where the run would let them go on.
    """

    groups: list[ScoredGroup]
    prompt_s: float
    load_s: float
    prompts: int
    cut: int | None


def _decode(
    source: ProbeSource, config: TrainConfig, start: LoadedPolicy, problems: int, limit_s: float, check: _TimedCheck
) -> _Decoded:
    rollout = config.rollout
    begun, longest = time.perf_counter(), rollout.max_new_tokens
    request = min(rollout.prompts_per_request, rollout.prompts_per_step, problems)

    def timed(first: int, count: int, new: int) -> tuple[float, list[ScoredGroup]]:
        start_s, scored_s = time.perf_counter(), check.seconds
        groups = source.decode(first, count, new)
        return time.perf_counter() - start_s - (check.seconds - scored_s), groups

    source.publish(0, weights_of(start, config.learner.lora))
    timed(0, 1, 1)
    source.publish(0, weights_of(start, config.learner.lora))  # as after each step, with all that is used once loaded
    with_load, (again, _) = timed(0, 1, 1)[0], timed(0, 1, 1)
    found = [(1, 1, again)]
    groups: list[ScoredGroup] = []
    for count, new in growing_sizes(request, longest):
        ratio = count * new / (found[-1][0] * found[-1][1])
        if groups and time.perf_counter() - begun + ratio * found[-1][2] > limit_s:
            break
        check.forget()
        seconds, groups = timed(0, count, new)
        found.append((count, new, seconds))
    count, new, seconds = found[-1]
    prompts, total = count, seconds
    if (count, new) == (request, longest):
        most = min(rollout.prompts_per_step, problems)
        while prompts + count <= most and time.perf_counter() - begun + seconds < limit_s:
            more_s, more = timed(prompts, count, new)
            prompts, total, groups = prompts + count, total + more_s, groups + more
        prompt_s = total / prompts
    else:
        prompt_s = _whole_request(found, request, longest) / request
    unfinished = any(not each.finished for group in groups for each in group.completions)
    return _Decoded(
        groups, prompt_s, max(0.0, with_load - again), prompts, new if new < longest and unfinished else None
    )


def _whole_request(found: Sequence[tuple[int, int, float]], request: int, longest: int) -> float:
    """Seconds of a request, from smaller ones: what the last doubling added goes on."""
    count, new, seconds = found[-1]
    count_before, new_before, seconds_before = found[-2]
    added = max(0.0, seconds - seconds_before)
    if new < longest:
        seconds += added / max(1, new - new_before) * (longest - new)
    if count == count_before:  # nothing is known of more prompts at a time
        return seconds * request
    return seconds + added / (count - count_before) * (request - count)


@dataclass(frozen=True, slots=True)
class _StepSize:
    """What a whole step learns from.

    Attributes:
        tokens: that go through the model, of one pass over them.
        draws: batches of prompts that are decoded for it.
        completion_tokens: mean of a completion.
    """

    tokens: float
    draws: int
    completion_tokens: float

    @classmethod
    def of(cls, config: TrainConfig, decoded: _Decoded, lay_out: LayOut, known: bool) -> _StepSize:
        rollout, groups = config.rollout, decoded.groups
        share, draws = 1.0, 1
        used = choose_groups([shortened(group, rollout.max_new_tokens) for group in groups], all_used(config)).learning
        if known and rollout.skip_uninformative:
            informative = choose_groups(groups, config).learning
            if informative:  # else too few were tried to tell
                used, share = informative, len(informative) / min(len(groups), rollout.prompts_per_step)
                draws = min(1 + rollout.max_extra_draws, math.ceil(1 / share))
        laid_out = tokens_of(used, lay_out) / len(used)
        completions = [each for group in groups for each in group.completions]
        length = mean(len(each.tokens) for each in completions)
        if decoded.cut is not None:
            more = rollout.max_new_tokens - decoded.cut
            open_share = mean(not each.finished for each in completions)
            length += open_share * more
            laid_out += open_share * more * mean(len(group.completions) for group in used)
        learned = min(1.0, share * draws) * rollout.prompts_per_step
        return cls(learned * laid_out, draws, length)
