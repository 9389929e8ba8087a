"""What the measurements of a step learn from: a policy, a configuration, and groups of its own beams."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.config import TrainConfig, build_config, load_config
from bgrpo.decoding import DecodeEngine
from bgrpo.groups import ScoredGroup, Verdict
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.io import load_policy
from bgrpo.policies.model import build_policy
from bgrpo.scoring.judge import Judge, finished_texts
from bgrpo.scoring.texts import complete
from bgrpo.tasks.base import Outcome, load_task

SHIPPED_PROBLEMS = 96
CORRECT = 0.3  # of the completions, where the policy has random weights
_SEED = 20


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A GPT-2-shaped policy with random weights."""

    layers: int
    heads: int
    width: int
    context: int


@dataclass(frozen=True, slots=True)
class UpdateCase:
    """One update's groups.

    Attributes:
        name: for people.
        shape: of a policy with random weights; None: the shipped policy, on the quickstart's problems.
        groups: per update.
        size: completions of a group.
        prompt_tokens: length of each prompt, where weights are random.
        new_tokens: length of each completion, where weights are random.
    """

    name: str
    shape: ModelShape | None
    groups: int
    size: int
    prompt_tokens: int = 0
    new_tokens: int = 0


SHIPPED = UpdateCase("shipped 0.6M, 32 × 10", None, 32, 10)
SMALL = UpdateCase("1.8M, 16 × 10", ModelShape(4, 4, 192, 128), 16, 10, 95, 16)
LARGE = UpdateCase("19M, 4 × 25", ModelShape(6, 8, 512, 320), 4, 25, 220, 40)
TINY = UpdateCase("tiny, 2 × 4", ModelShape(2, 2, 32, 64), 2, 4, 12, 6)
CASES = {"shipped": SHIPPED, "1.8M": SMALL, "19M": LARGE, "tiny": TINY}


@dataclass(frozen=True, slots=True)
class Workload:
    """A case made ready.

    Attributes:
        config: of the run that would make this update.
        model: the policy, fp32.
        tokenizer: of the policy.
        groups: scored groups, one per problem.
    """

    config: TrainConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    groups: list[ScoredGroup]


def build_workload(case: UpdateCase) -> Workload:
    """A function of the case alone."""
    policy = load_policy("shipped")
    if case.shape is None:
        config = load_config(TrainConfig, "quickstart")
        groups = _shipped_groups(config, policy.model, policy.tokenizer)
        return Workload(config, policy.model, policy.tokenizer, groups)
    model = endless_policy(case.shape, policy.tokenizer)
    config = build_config(
        TrainConfig,
        {
            "rollout": {
                "group_size": case.size,
                "prompts_per_step": case.groups,
                "max_new_tokens": case.new_tokens,
                "skip_uninformative": False,
            }
        },
        case.name,
    )
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
        replace(group, rewards=judge.rewards([Verdict(outcome) for outcome in group.outcomes])) for group in groups
    ]
    return Workload(config, model, policy.tokenizer, scored)


def without_sharing(groups: Sequence[ScoredGroup], vocabulary: int) -> list[ScoredGroup]:
    """The same prompts and lengths, with random tokens: completions share next to nothing."""
    rng = random.Random(_SEED)
    return [
        replace(
            group,
            completions=[
                replace(completion, tokens=[rng.randrange(2, vocabulary) for _ in completion.tokens])
                for completion in group.completions
            ],
        )
        for group in groups
    ]


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
    problems = task.generate(train.options, SHIPPED_PROBLEMS, train.seed)
    groups = complete(DecodeEngine(model), tokenizer, problems, decode_settings(config, tokenizer))
    verdicts = [Verdict(task.check(*item)) for item in finished_texts(problems, groups)]
    return Judge(config).score(range(len(groups)), groups, verdicts, version=0)


def _random_verdict(rng: random.Random) -> Verdict:
    return Verdict(Outcome.CORRECT if rng.random() < CORRECT else Outcome.WRONG)
