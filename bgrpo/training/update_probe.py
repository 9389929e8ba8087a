"""How long an update takes here: a real learner makes a few, each at most twice as large as the one before."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bgrpo.config import TrainConfig
from bgrpo.config.upkeep import BudgetSection
from bgrpo.groups import ScoredGroup
from bgrpo.learning.batch import LearningGroup, choose_groups
from bgrpo.learning.padded_rows import LayOut
from bgrpo.learning.rollout_source import LocalRolloutSource
from bgrpo.learning.starting_point import starting_point
from bgrpo.learning.trainer import BGRPOTrainer
from bgrpo.policies.io import LoadedPolicy
from bgrpo.scoring.judge import Check
from bgrpo.tasks.base import Problem
from bgrpo.training.memory_estimate import BatchSize
from bgrpo.training.traced_activations import laid_out_tokens

_FIRST_TOKENS = 8
_REPEATS = 3  # updates of the full size
_AT_MOST = 1000  # steps of a probe
_HARDLY = 1e-12  # learning rate of a probe


class ProbeSource(LocalRolloutSource):
    """Decodes as a local run does, completions as long as it is told; learning gets ``given`` in place of rollouts."""

    def __init__(self, problems: Sequence[Problem], config: TrainConfig, check: Check, start: LoadedPolicy) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(problems, start.tokenizer, config, check, device, start)
        self.given: list[ScoredGroup] = []

    def decode(self, first: int, count: int, new: int) -> list[ScoredGroup]:
        """Groups of ``count`` problems from ``first`` on, completions of at most ``new`` tokens."""
        shortest = min(new, self._settings.min_new_tokens)
        settings = replace(self._settings, max_new_tokens=new, min_new_tokens=shortest)
        problems = [self._problems[place % len(self._problems)] for place in range(first, first + count)]
        return self._scored(range(count), problems, settings, 0, range(first, first + count))

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """What was given, as if it had been decoded."""
        return [replace(group, index=index, version=version) for group, index in zip(self.given, indices, strict=True)]


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the probe: tokens that went through the model, and seconds."""

    tokens: int
    update: float
    optimizer: float
    weights: float


def probe_updates(
    source: ProbeSource,
    config: TrainConfig,
    start: LoadedPolicy,
    decoded: Sequence[ScoredGroup],
    lay_out: LayOut,
    limit_s: float,
) -> list[Update]:
    """Updates of growing size by a real learner, whose policy is then thrown away."""
    growing = _GrowingUpdates(source, config, decoded, lay_out, limit_s)
    policy, reference = starting_point(config, start, None) if config.learner.lora.is_on else (start, None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BGRPOTrainer(
            growing.config,
            policy.model,
            policy.tokenizer,
            source,
            len(source.given),
            Path(folder),
            reference=reference,
            on_step=growing.on_step,
            should_stop=growing.should_stop,
        )
        growing.start()
        trainer.run()
    return growing.done


def growing_sizes(most: int, longest: int) -> Iterator[tuple[int, int]]:
    """(prompts, tokens), each at most twice the one before."""
    new, count = min(_FIRST_TOKENS, longest), 1
    yield count, new
    while new < longest:
        new = min(2 * new, longest)
        yield count, new
    while count < most:
        count = min(2 * count, most)
        yield count, new


def update_s(updates: Sequence[Update], tokens: float) -> float:
    """Seconds of an update of so many tokens: what the last doubling added goes on, or full micro-batches do."""
    last = [one for one in updates[1:] if one.tokens == updates[-1].tokens]
    update, optimizer = median(one.update for one in last), median(one.optimizer for one in last)
    smaller = [one for one in updates[1:] if one.tokens < updates[-1].tokens]
    if len(last) > 1 or not smaller:
        return optimizer + (update - optimizer) * tokens / last[0].tokens
    added = max(0.0, update - smaller[-1].update) / (last[0].tokens - smaller[-1].tokens)
    return update + added * (tokens - last[0].tokens)


class _GrowingUpdates:
    """Gives the learner one micro-batch for each step, each at most twice as large as the one before.

    Attributes:
        config: of the learner: a step is one micro-batch for each of its minibatches.
        done: what its steps took.
    """

    def __init__(
        self,
        source: ProbeSource,
        config: TrainConfig,
        decoded: Sequence[ScoredGroup],
        lay_out: LayOut,
        limit_s: float,
    ) -> None:
        learner = config.learner
        self._most = BatchSize.of(_alone(config), 1, padded=False).groups
        self._parts = learner.minibatches
        self.config = all_used(_alone(config), self._most * self._parts, self._most)
        self.done: list[Update] = []
        self._source, self._decoded, self._lay_out, self._limit_s = source, decoded, lay_out, limit_s
        longest = max(len(each.tokens) for group in decoded for each in group.completions)
        full = (self._most, longest)
        sizes = list(growing_sizes(*full))
        self._sizes = [sizes[0], *sizes, *[full] * (_REPEATS - 1)]  # the first update loads what all use
        self._tokens = self._give(0)

    def start(self) -> None:
        """Time counts from here."""
        self._begun = self._last = time.perf_counter()

    def should_stop(self) -> bool:
        """Whether what comes next would take too long; asked before :meth:`on_step`."""
        now, place = time.perf_counter(), len(self.done)
        if place + 1 == len(self._sizes):
            return True
        (count, new), (next_count, next_new) = self._sizes[place], self._sizes[place + 1]
        expected = (now - self._last) * next_count * next_new / (count * new)
        return place > 1 and now - self._begun + expected > self._limit_s

    def on_step(self, told: dict[str, Any]) -> None:
        """Note what the step took, and have the next one ready."""
        learn, optimizer, weights = (told[f"seconds/{name}"] for name in ("learn", "optimizer", "weights"))
        self.done.append(Update(self._tokens, learn, optimizer, weights))
        if len(self.done) < len(self._sizes):
            self._tokens = self._give(len(self.done))
        self._last = time.perf_counter()

    def _give(self, place: int) -> int:
        count, new = self._sizes[place]
        self._source.given = [
            shortened(self._decoded[number % len(self._decoded)], new if number < count * self._parts else 0)
            for number in range(self._most * self._parts)
        ]
        used = choose_groups(self._source.given, self.config).learning
        return tokens_of(used, self._lay_out)


def shortened(group: ScoredGroup, new: int) -> ScoredGroup:
    """With completions of at most so many tokens, that differ in reward; 0: next to nothing of it."""
    kept = group.completions if new else group.completions[:1]
    size = new or 1
    completions = [
        replace(
            each,
            tokens=each.tokens[:size],
            logprobs=each.logprobs[:size],
            sampled_logprobs=each.sampled_logprobs[:size],
            finished=True,
        )
        for each in kept
    ]
    rewards: list[float | None] = [float(place % 2) for place in range(len(completions))]
    prompt = group.prompt_ids if new else group.prompt_ids[:1]
    return replace(group, prompt_ids=prompt, completions=completions, rewards=rewards)


def _alone(config: TrainConfig) -> TrainConfig:
    """With one learner."""
    return config.model_copy(update={"learner": config.learner.model_copy(update={"workers": 1})})


def all_used(config: TrainConfig, prompts: int | None = None, micro_groups: int | None = None) -> TrainConfig:
    """As a probe learns: every group is used, nothing ends it early, and the weights hardly move."""
    rollout: dict[str, Any] = {"skip_uninformative": False, "max_extra_draws": 0}
    learner: dict[str, Any] = {"learning_rate": _HARDLY, "max_kl": float("inf")}
    if prompts is not None and micro_groups is not None:
        rollout["prompts_per_step"], learner["micro_groups"] = prompts, micro_groups
    return config.model_copy(
        update={
            "steps": _AT_MOST,
            "epochs": None,
            "budget": BudgetSection(),
            "rollout": config.rollout.model_copy(update=rollout),
            "learner": config.learner.model_copy(update=learner),
        }
    )


def tokens_of(groups: Sequence[LearningGroup], lay_out: LayOut) -> int:
    """That go through the model for these groups, fillers included."""
    return laid_out_tokens(lay_out([(group.prompt, group.completions) for group in groups], "cpu"))
