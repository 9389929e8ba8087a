"""From a step's scored groups to each learner's micro-batches: whole groups only, planned alike on every learner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bgrpo.config import TrainConfig
from bgrpo.groups import ScoredGroup
from bgrpo.learning.group_advantages import counted, group_advantages, repeated
from bgrpo.learning.kl import divergence
from bgrpo.learning.prompt_order import indices_of_draw
from bgrpo.learning.rollout_source import RolloutSource
from bgrpo.scoring.advantages import is_informative

ReferenceLogprobs = Callable[[Sequence[ScoredGroup]], list[list[list[float]]]]
"""Log-probabilities that the reference policy gives the tokens of groups, the same on every learner."""


@dataclass(frozen=True, slots=True)
class LearningGroup:
    """One group as the loss sees it: tokens, what decoding gave each of them, and one advantage per completion.

    Attributes:
        token_advantages: of each token, where tokens are judged apart, and ``advantages`` are their means; else empty.
        reference_logprobs: of each token, where the KL is in the reward; else empty.
        sampled_logprobs: of each token, where it was drawn from a part of the distribution: in that part; else empty.
    """

    prompt: list[int]
    completions: list[list[int]]
    logprobs: list[list[float]]
    advantages: list[float]
    reference_logprobs: list[list[float]] = field(default_factory=list)
    sampled_logprobs: list[list[float]] = field(default_factory=list)
    token_advantages: list[list[float]] = field(default_factory=list)

    @property
    def drawn_logprobs(self) -> list[list[float]]:
        """Of each token, in the distribution that it was drawn from."""
        return self.sampled_logprobs or self.logprobs

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
        rows: completions of all learners, which normalise the losses that average over completions.
        cut_tokens: completion tokens of all learners, per cut.
        cut_rows: completions of the learner that has most, per cut.
        cut_completions: completions of all learners, per cut.
    """

    micro_batches: list[list[LearningGroup]]
    tokens: int
    rows: int
    cut_tokens: list[int]
    cut_rows: list[int]
    cut_completions: list[int]


@dataclass(frozen=True, slots=True)
class LearningStep:
    """Everything drawn for one training step.

    Attributes:
        groups: all groups, in the order they were drawn.
        learning: the groups that the update uses.
        advantages: those of these groups, by position in ``groups``.
        kl_in_reward: mean KL of a completion that its reward was charged for, before ``learner.beta``; None where the
            KL is not in the reward.
    """

    groups: list[ScoredGroup]
    learning: list[LearningGroup]
    advantages: dict[int, list[float]] = field(default_factory=dict)
    kl_in_reward: float | None = None


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


def choose_groups(
    groups: list[ScoredGroup], config: TrainConfig, reference_logprobs: ReferenceLogprobs | None = None
) -> LearningStep:
    """Advantages of a step's groups; uninformative ones may be left out of the update.

    Args:
        groups: as drawn.
        config: of the run.
        reference_logprobs: where ``learner.kl_in_reward`` is set. Each reward then loses ``learner.beta`` times the KL
            of its completion, a sum over its tokens; whether a group is informative, its own rewards say.
    """
    places = [place for place, group in enumerate(groups) if _is_used(group, config)]
    places = places[: config.rollout.prompts_per_step]
    used = [groups[place] for place in places]
    logps = reference_logprobs(used) if reference_logprobs is not None else [[] for _ in used]
    rewards = [group.rewards for group in used]
    charged: list[float] = []
    if reference_logprobs is not None:
        kls = [_kl_of_completions(group, of_group, config) for group, of_group in zip(used, logps, strict=True)]
        charged = [kl for group in kls for kl in group]
        rewards = [_charged(*pair, config.learner.beta) for pair in zip(rewards, kls, strict=True)]
    values, of_tokens = group_advantages(used, rewards, config)
    learning = [
        _learning_group(group, earned, of_group, each, reference, config)
        for group, earned, of_group, each, reference in zip(used, rewards, values, of_tokens, logps, strict=True)
    ]
    return LearningStep(
        groups,
        [group for group in learning if group.completions],
        dict(zip(places, values, strict=True)),
        sum(charged) / len(charged) if charged else None,
    )


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
                rows=_rows(part),
                cut_tokens=[sum(_tokens(learner[cut]) for learner in of_learners) for cut in range(cuts)],
                cut_rows=[max(_rows(learner[cut]) for learner in of_learners) for cut in range(cuts)],
                cut_completions=[sum(_rows(learner[cut]) for learner in of_learners) for cut in range(cuts)],
            )
        )
    return minibatches


def _is_used(group: ScoredGroup, config: TrainConfig) -> bool:
    if not config.rollout.skip_uninformative:
        return any(reward is not None for reward in group.rewards)
    return is_informative(counted(group, group.rewards, config), config.advantage_kind, config.advantage.k)


def best_and_worst(rewards: Sequence[float | None], share: float) -> list[int]:
    """Places of the best and of the worst of a group, ``share`` of it together and at least one of each.

    Of equal rewards the earlier count as better. What has no reward is neither; a share of 1 is the whole group.
    """
    if share == 1:
        return list(range(len(rewards)))
    known = sorted((-reward, place) for place, reward in enumerate(rewards) if reward is not None)
    each = max(1, math.ceil(share * len(rewards) / 2 - 1e-9))
    return sorted({place for _, place in known[:each] + known[-each:]})


def _learning_group(
    group: ScoredGroup,
    rewards: Sequence[float | None],
    values: list[float],
    of_tokens: list[list[float]],
    reference_logprobs: list[list[float]],
    config: TrainConfig,
) -> LearningGroup:
    """What is learned of a group; what is cut off, or neither best nor worst, counts in its advantages all the same."""
    finished_only = config.learner.mask_truncated
    left_out = repeated(group) if config.advantage.duplicates == "once" else set()
    kept = [
        place
        for place in best_and_worst(rewards, config.advantage.keep)
        if (group.completions[place].finished or not finished_only) and place not in left_out
    ]
    return LearningGroup(
        group.prompt_ids,
        [group.completions[i].tokens for i in kept],
        [group.completions[i].logprobs for i in kept],
        [values[i] for i in kept],
        [reference_logprobs[i] for i in kept] if reference_logprobs else [],
        [group.completions[i].sampled_logprobs for i in kept if group.completions[i].sampled_logprobs],
        [of_tokens[i] for i in kept] if of_tokens else [],
    )


def _kl_of_completions(
    group: ScoredGroup, reference_logprobs: Sequence[Sequence[float]], config: TrainConfig
) -> list[float]:
    """Of the policy that decoded them, a sum over tokens each."""
    estimator = config.learner.estimator
    return [
        float(divergence(_float64(completion.logprobs), _float64(reference), estimator).sum())
        for completion, reference in zip(group.completions, reference_logprobs, strict=True)
    ]


def _float64(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _charged(rewards: Sequence[float | None], kls: Sequence[float], beta: float) -> list[float | None]:
    return [None if reward is None else reward - beta * kl for reward, kl in zip(rewards, kls, strict=True)]


def _tokens(groups: Sequence[LearningGroup]) -> int:
    return sum(group.tokens for group in groups)


def _rows(groups: Sequence[LearningGroup]) -> int:
    return sum(len(group.completions) for group in groups)


def _cut(groups: Sequence[LearningGroup], cuts: int) -> list[list[LearningGroup]]:
    """Consecutive cuts whose sizes differ by at most one."""
    bounds = [len(groups) * cut // cuts for cut in range(cuts + 1)]
    return [list(groups[start:end]) for start, end in itertools.pairwise(bounds)]
