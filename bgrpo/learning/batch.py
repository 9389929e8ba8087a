"""From a step's scored groups to each learner's micro-batches: whole groups only, planned alike on every learner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bgrpo.config import TrainConfig
from bgrpo.groups import ScoredGroup
from bgrpo.learning.prompt_order import indices_of_draw
from bgrpo.learning.rollout_source import RolloutSource
from bgrpo.scoring.advantages import advantages, is_informative

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class LearningGroup:
    """One group as the loss sees it: tokens, what decoding gave each of them, and one advantage per completion."""

    prompt: list[int]
    completions: list[list[int]]
    logprobs: list[list[float]]
    advantages: list[float]

    @property
    def tokens(self) -> int:
        """Completion tokens, which are what the loss averages over."""
        return sum(len(completion) for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Minibatch:
    """What one learner does for one optimizer step.

    Attributes:
        micro_batches: this learner's groups, cut; every learner has equally many cuts, some may be empty.
        tokens: completion tokens of all learners, which normalise the loss.
        cut_tokens: completion tokens of all learners, per cut.
        cut_rows: completions of the learner that has most, per cut.
    """

    micro_batches: list[list[LearningGroup]]
    tokens: int
    cut_tokens: list[int]
    cut_rows: list[int]


@dataclass(frozen=True, slots=True)
class LearningStep:
    """Everything drawn for one training step.

    Attributes:
        groups: all groups, in the order they were drawn.
        learning: the groups that the update uses.
        advantages: those of these groups, by position in ``groups``.
    """

    groups: list[ScoredGroup]
    learning: list[LearningGroup]
    advantages: dict[int, list[float]] = field(default_factory=dict)


def draw_groups(
    source: RolloutSource, config: TrainConfig, step: int, version: int, problems: int
) -> list[ScoredGroup]:
    """All groups of a step, decoded with the weights of ``version``, in the order in which they were drawn.

    Where ``rollout.skip_uninformative`` leaves groups out of the update, further prompts are drawn up to
    ``rollout.max_extra_draws`` times, until ``rollout.prompts_per_step`` informative groups are there.

    Raises:
        RuntimeError: the source gave other groups than asked for, or groups made with other weights.
    """
    wanted = config.rollout.prompts_per_step
    groups: list[ScoredGroup] = []
    for draw in range(1 + config.rollout.max_extra_draws):
        indices = indices_of_draw(config, step, problems, draw)
        drawn = source.collect(step, version, indices, draw)
        check_drawn(drawn, indices, step, version)
        groups += drawn
        if sum(_is_used(group, config) for group in groups) >= wanted:
            break
    return groups


def check_drawn(drawn: Sequence[ScoredGroup], indices: Sequence[int], step: int, version: int) -> None:
    """Groups must be of the problems asked for, and made by exactly the weights that ``step`` is to learn from.

    Raises:
        RuntimeError: they are not.
    """
    if [group.index for group in drawn] != list(indices):
        raise RuntimeError(f"asked for rollouts of problems {list(indices)}, got {[group.index for group in drawn]}")
    for group in drawn:
        if group.version != version:
            raise RuntimeError(
                f"stale rollouts: problem {group.index} was decoded by version {group.version} of the policy, "
                f"but step {step} learns from rollouts of version {version}"
            )
        if not group.completions or not all(completion.tokens for completion in group.completions):
            raise RuntimeError(f"problem {group.index} came back without completions, or with an empty one")


def choose_groups(groups: list[ScoredGroup], config: TrainConfig) -> LearningStep:
    """Advantages of a step's groups; uninformative ones may be left out of the update."""
    places = [place for place, group in enumerate(groups) if _is_used(group, config)]
    places = places[: config.rollout.prompts_per_step]
    used = [groups[place] for place in places]
    values = advantages(
        [group.rewards for group in used],
        [[completion.logprob for completion in group.completions] for group in used],
        config.advantage_kind,
        config.advantage.alpha,
    )
    learning = [_learning_group(*pair) for pair in zip(used, values, strict=True)]
    return LearningStep(groups, learning, dict(zip(places, values, strict=True)))


def micro_batches_per_minibatch(config: TrainConfig, world_size: int) -> int:
    """Forward passes of one learner for one optimizer step, a constant of the run."""
    groups = math.ceil(config.rollout.prompts_per_step / (world_size * config.learner.minibatches))
    return math.ceil(groups / config.learner.micro_groups)


def split_update(groups: Sequence[LearningGroup], config: TrainConfig, rank: int, world_size: int) -> list[Minibatch]:
    """Cut a step's groups into ``learner.minibatches`` optimizer steps, and each into this learner's micro-batches.

    Groups of similar length go together, so that little padding is needed. Which minibatch a group belongs to does
    not depend on the number of learners.
    """
    cuts = micro_batches_per_minibatch(config, world_size)
    minibatches = []
    for first in range(config.learner.minibatches):
        part = sorted(groups[first :: config.learner.minibatches], key=lambda group: (len(group.prompt), group.tokens))
        of_learners = [_cut(part[learner::world_size], cuts) for learner in range(world_size)]
        minibatches.append(
            Minibatch(
                micro_batches=of_learners[rank],
                tokens=_tokens(part),
                cut_tokens=[sum(_tokens(learner[cut]) for learner in of_learners) for cut in range(cuts)],
                cut_rows=[max(_rows(learner[cut]) for learner in of_learners) for cut in range(cuts)],
            )
        )
    return minibatches


def _is_used(group: ScoredGroup, config: TrainConfig) -> bool:
    return not config.rollout.skip_uninformative or is_informative(group.rewards, config.advantage_kind)


def _learning_group(group: ScoredGroup, values: list[float]) -> LearningGroup:
    return LearningGroup(
        group.prompt_ids,
        [completion.tokens for completion in group.completions],
        [completion.logprobs for completion in group.completions],
        values,
    )


def _tokens(groups: Sequence[LearningGroup]) -> int:
    return sum(group.tokens for group in groups)


def _rows(groups: Sequence[LearningGroup]) -> int:
    return sum(len(group.completions) for group in groups)


def _cut(groups: Sequence[LearningGroup], cuts: int) -> list[list[LearningGroup]]:
    """Consecutive cuts whose sizes differ by at most one."""
    bounds = [len(groups) * cut // cuts for cut in range(cuts + 1)]
    return [list(groups[start:end]) for start, end in itertools.pairwise(bounds)]
