"""What the measurements of a step learn from: a policy, a configuration, and groups of its own beams."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.bench.rollouts.cases import ModelShape
from bgrpo.config import TrainConfig, build_config, load_config
from bgrpo.decoding import DecodeEngine
from bgrpo.groups import Completion, ScoredGroup, Verdict
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.io import load_policy
from bgrpo.policies.model import build_policy
from bgrpo.scoring.attempts import attempts_of
from bgrpo.scoring.judge import Judge
from bgrpo.scoring.readable_groups import complete
from bgrpo.tasks.base import Outcome, checker, generate_problems, load_task

SHIPPED_PROBLEMS = 96
CORRECT = 0.3  # of the completions, where the policy has random weights
_SEED = 20


@dataclass(frozen=True, slots=True)
class UpdateCase:
    """One update's groups."""

    name: str  # for people
    shape: ModelShape | None  # of a policy with random weights; None: the shipped policy, on the quickstart's problems
    groups: int  # per update
    size: int  # completions of a group
    prompt_tokens: int = 0  # of each prompt, where weights are random
    new_tokens: int = 0  # of each completion, where weights are random


SHIPPED = UpdateCase("shipped 0.6M, 32 × 10", None, 32, 10)
SMALL = UpdateCase("1.8M, 16 × 10", ModelShape(4, 4, 192, 128), 16, 10, 95, 16)
LARGE_SHAPE = ModelShape(6, 8, 512, 320)
LARGE = UpdateCase("19M, 4 × 25", LARGE_SHAPE, 4, 25, 220, 40)
TINY = UpdateCase("tiny, 2 × 4", ModelShape(2, 2, 32, 64), 2, 4, 12, 6)


@dataclass(frozen=True, slots=True)
class Workload:
    """A case made ready."""

    config: TrainConfig  # of the run that would make this update
    model: PreTrainedModel  # fp32
    tokenizer: PreTrainedTokenizerBase
    groups: list[ScoredGroup]  # one per problem


def build_workload(case: UpdateCase) -> Workload:
    """A function of the case alone."""
    policy = load_policy("shipped")
    if case.shape is None:
        config = load_config(TrainConfig, "quickstart")
        groups = _shipped_groups(config, policy.model, policy.tokenizer)
        return Workload(config, policy.model, policy.tokenizer, groups)
    model = endless_policy(case.shape, policy.tokenizer)
    rollout = {"group_size": case.size, "prompts_per_step": case.groups, "max_new_tokens": case.new_tokens}
    config = build_config(TrainConfig, {"rollout": rollout | {"skip_uninformative": False}}, case.name)
    rng = random.Random(_SEED)
    prompts = [[rng.randrange(2, len(policy.tokenizer)) for _ in range(case.prompt_tokens)] for _ in range(case.groups)]
    decoded = DecodeEngine(model).decode(prompts, decode_settings(config, policy.tokenizer))
    groups = [
        ScoredGroup(
            prompt_ids=group.prompt_ids,
            completions=[replace(item, verdict=_random_verdict(rng)) for item in group.completions],
            rewards=[],
            index=index,
            version=0,
        )
        for index, group in enumerate(decoded)
    ]
    judge = Judge(config)
    scored = [
        replace(group, rewards=judge.rewards([completion.judged for completion in group.completions]))
        for group in groups
    ]
    return Workload(config, model, policy.tokenizer, scored)


def without_sharing(groups: Sequence[ScoredGroup], vocabulary: int) -> list[ScoredGroup]:
    """The same prompts and lengths, with random tokens: completions share next to nothing."""
    rng = random.Random(_SEED)

    def scrambled(completion: Completion) -> Completion:
        return replace(completion, tokens=[rng.randrange(2, vocabulary) for _ in completion.tokens])

    return [replace(group, completions=[*map(scrambled, group.completions)]) for group in groups]


def endless_policy(shape: ModelShape, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A policy with random weights, far from uniform, whose completions never end by themselves.

    The last norm's bias and the end token's embedding point in opposite directions, so that its logit is about -100.
    """
    model: Any = build_policy(
        tokenizer, shape.layers, shape.heads, shape.width, shape.context, _SEED, initial_deviation=0.06
    ).eval()
    generator = torch.Generator().manual_seed(_SEED)
    direction = torch.nn.functional.normalize(torch.randn(shape.width, generator=generator), dim=0)
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(5 * direction)
        model.transformer.wte.weight[tokenizer.eos_token_id] = -20 * direction
    return model


def _shipped_groups(
    config: TrainConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[ScoredGroup]:
    task = load_task(config.task.name, config.task.options)
    train = config.task.train
    problems = generate_problems(task, train.options, SHIPPED_PROBLEMS, train.seed)
    groups = complete(DecodeEngine(model), tokenizer, problems, decode_settings(config, tokenizer))
    check = checker(task)
    verdicts = [
        Verdict(check(attempt.problem, attempt.text) if attempt.finished else Outcome.TRUNCATED)
        for attempt in attempts_of(problems, groups)
    ]
    return Judge(config).score(range(len(groups)), groups, verdicts, version=0)


def _random_verdict(rng: random.Random) -> Verdict:
    return Verdict(Outcome.CORRECT if rng.random() < CORRECT else Outcome.WRONG)
