"""Where a training step's scored groups come from, and which problems a step trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bgrpo.config import TrainConfig
from bgrpo.groups import Group, ScoredGroup
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Outcome, Problem
from bgrpo.verification import CheckResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bgrpo.decoding import DecodeEngine, DecodeSettings

Check = Callable[[Sequence[tuple[str, str]]], Sequence[CheckResult]]
"""Checks (prompt, completion) pairs of text, in order: :meth:`bgrpo.verification.CheckProcess.run`, for example."""


class RolloutSource(Protocol):
    """Makes scored groups with exactly the weights it is asked for."""

    def publish(self, version: int, model: PreTrainedModel) -> None:
        """Make the model's present weights available as ``version``; called by learner 0 only."""
        ...

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """Scored groups of the problems ``indices``, in that order, all decoded by ``version``.

        Args:
            step: training step, from 0.
            version: published version to decode with.
            indices: problems; the same on every learner that asks for (step, draw).
            draw: 0 for a step's first prompts, 1 … for the further ones that replace uninformative groups.
        """
        ...


class LocalRolloutSource:
    """Decodes and checks in this process: one learner, no Ray.

    Args:
        problems: the training problems; indices point into them.
        tokenizer: of the policy.
        config: its ``rollout`` section and ``seed`` are read.
        check: checks finished completions.
    """

    def __init__(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, config: TrainConfig, check: Check
    ) -> None:
        from bgrpo.policies.tokenizer import encode_texts

        self._config = config
        self._tokenizer = tokenizer
        self._check = check
        self._texts = [problem.prompt for problem in problems]
        self._prompts = encode_texts(tokenizer, self._texts)
        self._settings = decode_settings(config, tokenizer)
        self._version = -1
        self._replica: PreTrainedModel | None = None
        self._engine: DecodeEngine | None = None

    def publish(self, version: int, model: PreTrainedModel) -> None:
        """Copy the weights, as a rollout actor would, so that updates do not reach them before the next version."""
        from bgrpo.decoding import DecodeEngine
        from bgrpo.policies.flat import flatten_parameters, load_flat_parameters

        if self._replica is None:
            self._replica = _empty_replica(model, self._config.rollout.dtype)
            self._engine = DecodeEngine(self._replica)
        load_flat_parameters(self._replica, flatten_parameters(model))
        self._version = version

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """See :meth:`RolloutSource.collect`.

        Raises:
            RuntimeError: another version is held.
        """
        if self._engine is None or version != self._version:
            raise RuntimeError(f"asked for weights of version {version}, but version {self._version} is held")
        prompts = [self._prompts[index] for index in indices]
        seeds = [rollout_seed(self._config.seed, step, index, draw) for index in indices]
        groups = self._engine.decode(prompts, self._settings, seeds)
        items = completions_to_check([self._texts[index] for index in indices], groups, self._tokenizer)
        return score_groups(indices, prompts, groups, self._check(items), version)


def prompt_indices(seed: int, step: int, count: int, size: int, draw: int = 0, draws: int = 1) -> list[int]:
    """The problems of one draw of one training step, a pure function of its arguments.

    The problems form an endless stream of epochs, each a fresh permutation of all of them. A step owns ``draws *
    count`` places of the stream, whether or not it needs its further draws.

    Args:
        seed: of the run.
        step: training step, from 0.
        count: problems per draw.
        size: problems there are.
        draw: 0 ≤ draw < draws.
        draws: 1 + ``rollout.max_extra_draws``.
    """
    start = (step * draws + draw) * count
    epochs = range(start // size, (start + count - 1) // size + 1)
    orders = [np.random.default_rng([seed, epoch]).permutation(size) for epoch in epochs]
    offset = start - epochs[0] * size
    return np.concatenate(orders)[offset : offset + count].tolist()


def decode_settings(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> DecodeSettings:
    """How a training run decodes its groups."""
    from bgrpo.decoding import DecodeSettings

    return DecodeSettings(
        mode=config.decode_mode,
        completions=config.rollout.group_size,
        max_new_tokens=config.rollout.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        temperature=config.rollout.temperature,
    )


def completions_to_check(
    texts: Sequence[str], groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, str]]:
    """(prompt, completion) texts of every finished completion, in order: what :func:`score_groups` wants checked."""
    from bgrpo.policies.tokenizer import decode_completion

    return [
        (text, decode_completion(tokenizer, completion.tokens))
        for text, group in zip(texts, groups, strict=True)
        for completion in group.completions
        if completion.finished
    ]


def score_groups(
    indices: Sequence[int],
    prompts: Sequence[list[int]],
    groups: Sequence[Group],
    results: Iterable[CheckResult],
    version: int,
) -> list[ScoredGroup]:
    """Join groups with the results of :func:`completions_to_check`; unfinished completions become ``truncated``.

    Raises:
        ValueError: more or fewer results than finished completions.
    """
    remaining = iter(results)
    scored = []
    for index, prompt, group in zip(indices, prompts, groups, strict=True):
        finished = [completion.finished for completion in group.completions]
        checked = [next(remaining, None) if done else CheckResult(Outcome.TRUNCATED) for done in finished]
        known = [result for result in checked if result is not None]
        if len(known) < len(checked):
            raise ValueError(f"problem {index}: fewer check results than finished completions")
        has_scores = any(result.score is not None for result in known)
        scored.append(
            ScoredGroup(
                index=index,
                prompt_ids=prompt,
                completions=group.completions,
                outcomes=[str(result.outcome) for result in known],
                version=version,
                scores=[result.score or 0.0 for result in known] if has_scores else None,
            )
        )
    if next(remaining, None) is not None:
        raise ValueError("more check results than finished completions")
    return scored


def _empty_replica(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """A model of the same configuration on the same device, its weights still to be loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    replica = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config), dtype=torch.bfloat16 if dtype == "bf16" else torch.float32
    )
    return replica.to(model.device).eval()
