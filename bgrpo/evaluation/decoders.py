"""What decodes and judges for an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from bgrpo.config import RolloutSection
from bgrpo.groups import Completion
from bgrpo.scoring.attempts import attempts_of
from bgrpo.scoring.judge import Check, with_verdicts
from bgrpo.scoring.readable_groups import complete, decode_settings_of
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy

DecodeMode = Literal["beam", "sample"]


class Decode(Protocol):
    """Decodes and judges; here or on the rollout pool."""

    def __call__(
        self, problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        """For each problem its beams, best first, or its samples (one seed per problem); all with verdicts."""
        ...


class LocalDecoder:
    """:class:`Decode` in this process.

    Args:
        policy: what decodes.
        check: what judges, see :meth:`bgrpo.scoring.judge.Scorer.judge`.
        max_new_tokens: longest completion, end token included; longer ones are ``truncated``.
        rollout: how they are decoded; default: as by default.
        temperature: of samples.

    Raises:
        UserError: what is asked for cannot be with this policy.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        check: Check,
        max_new_tokens: int,
        rollout: RolloutSection | None = None,
        temperature: float = 1.0,
    ) -> None:
        from bgrpo.decoding import DecodeEngine

        rollout = rollout or RolloutSection()
        self._tokenizer = policy.tokenizer
        self._check, self._temperature = check, temperature
        self._settings = decode_settings_of(rollout, "sample", policy.tokenizer, max_new_tokens)
        self._engine = DecodeEngine(policy.model, precision=rollout.dtype, engine=rollout.engine)

    def __call__(
        self, problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        settings = self._settings.to_measure(mode, group_size, self._temperature)
        groups = complete(self._engine, self._tokenizer, problems, settings, seeds)
        judged = with_verdicts(groups, self._check(attempts_of(problems, groups)))
        return [group.completions for group in judged]
