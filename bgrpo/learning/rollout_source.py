"""Where a training step's scored groups come from, and which problems a step trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bgrpo.config import TrainConfig
from bgrpo.evaluation.decoders import Decode, DecodeMode
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.scoring.attempts import attempts_of
from bgrpo.scoring.judge import Check, Judge
from bgrpo.scoring.readable_groups import complete, decode_settings_of
from bgrpo.seeds import rollout_seed
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bgrpo.decoding import DecodeEngine, DecodeSettings
    from bgrpo.learning.replica import Replica
    from bgrpo.policies.adapter import Adapter
    from bgrpo.policies.io import LoadedPolicy


class RolloutSource(Protocol):
    """Makes scored groups with exactly the weights it is asked for."""

    def publish(self, version: int, weights: PreTrainedModel | Adapter) -> None:
        """Make the present weights, or with ``learner.lora`` the adapter, available as ``version``; by learner 0 only.

        They stay available until version ``version + 1 + rollout.max_staleness`` is published.
        """
        ...

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """Begin what ``collect(step, version, indices, draw=0)`` will be asked for; called by learner 0 only.

        Returns at once, and never fails: what goes wrong is told by :meth:`collect`.
        """
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

    Problems are decoded in the same cuts of ``rollout.prompts_per_request`` and with the same number of threads as on
    rollout actors, so the result is the same too.

    Args:
        problems: the training problems; indices point into them.
        tokenizer: of the policy.
        config: its ``rollout`` and ``reward_model`` sections and ``seed`` are read.
        check: judges completions, see :meth:`bgrpo.scoring.judge.Scorer.judge`.
        device: that decodes; default: the published model's.
        start: the run's starting policy; needed where adapters are published, which are merged into its base.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        check: Check,
        device: str | None = None,
        start: LoadedPolicy | None = None,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._check = check
        self._judge = Judge(config)
        self._problems = problems
        self._device = device
        self._start = start
        self._settings = decode_settings(config, tokenizer)
        self._buffers: dict[int, np.ndarray] = {}  # published weights by version, oldest first
        self._loaded = -1  # the version that the replica holds
        self._replica: Replica | None = None
        self._engine: DecodeEngine | None = None

    def publish(self, version: int, weights: PreTrainedModel | Adapter) -> None:
        """Copy the weights, as a rollout actor would, so that updates do not reach them before the next version."""
        from bgrpo.decoding import DecodeEngine
        from bgrpo.policies.flat_weights import published_buffer

        if self._replica is None:
            self._replica = self._new_replica(weights)
            rollout = self._config.rollout
            self._engine = DecodeEngine(self._replica.model, precision=rollout.dtype, engine=rollout.engine)
        self._loaded = -1
        self._buffers[version] = published_buffer(weights)
        for old in [held for held in self._buffers if held < version - self._config.rollout.max_staleness]:
            del self._buffers[old]

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """Nothing: there is no other process, so decoding ahead would save no time."""

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """See :meth:`RolloutSource.collect`.

        Raises:
            RuntimeError: this version is not held.
        """
        problems = [self._problems[index] for index in indices]
        seeds = [rollout_seed(self._config.seed, step, index, draw) for index in indices]
        return self._scored(indices, problems, self._settings, version, seeds)

    def decoder(self, version: int) -> Decode:
        """What decodes any problems with a published version, and judges, for evaluations."""

        def decode(
            problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
        ) -> list[list[Completion]]:
            settings = self._settings.to_measure(mode, group_size)
            indices, seeds = range(len(problems)), seeds or [0] * len(problems)
            return [group.completions for group in self._scored(indices, problems, settings, version, seeds)]

        return decode

    def _scored(
        self,
        indices: Sequence[int],
        problems: Sequence[Problem],
        settings: DecodeSettings,
        version: int,
        seeds: Sequence[int],
    ) -> list[ScoredGroup]:
        engine, size = self._engine_with(version), self._config.rollout.prompts_per_request
        scored: list[ScoredGroup] = []
        for start in range(0, len(problems), size):
            cut = slice(start, start + size)
            with torch_threads(self._config.rollout.threads):
                groups = complete(engine, self._tokenizer, problems[cut], settings, seeds[cut])
            with torch_threads(self._config.reward_model.threads):
                verdicts = self._check(attempts_of(problems[cut], groups))
            scored += self._judge.score(indices[cut], groups, verdicts, version)
        return scored

    def _new_replica(self, weights: PreTrainedModel | Adapter) -> Replica:
        from bgrpo.learning.replica import AdapterReplica, WholeReplica
        from bgrpo.policies.adapter import Adapter

        if not isinstance(weights, Adapter):
            return WholeReplica(_empty_model(weights, self._device))
        if self._start is None:
            raise RuntimeError("an adapter was published, and there is no policy to merge it into")
        return AdapterReplica(self._start, self._config.learner.lora, self._device)

    def _engine_with(self, version: int) -> DecodeEngine:
        """The engine, its replica holding ``version``."""
        if self._engine is None or self._replica is None or version not in self._buffers:
            raise RuntimeError(f"asked for weights of version {version}; held: {list(self._buffers)}")
        if self._loaded != version:
            with torch_threads(self._config.rollout.threads):
                self._replica.load(self._buffers[version])
            self._loaded = version
        return self._engine


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads in the block, and as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode_settings(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> DecodeSettings:
    """How a training run decodes its groups, see :func:`bgrpo.scoring.readable_groups.decode_settings_of`."""
    return decode_settings_of(config.rollout, config.decode_mode, tokenizer)


def _empty_model(model: PreTrainedModel, device: str | None) -> PreTrainedModel:
    """A model of the same configuration on that device, or the same one, in fp32, its weights still to be loaded."""
    from bgrpo.policies.io import empty_copy

    replica: Any = empty_copy(model)
    return replica.to(device or model.device).eval()
