"""What decodes and judges for an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from bgrpo.groups import Completion
from bgrpo.scoring.attempts import attempts_of
from bgrpo.scoring.judge import Check, with_verdicts
from bgrpo.scoring.readable_groups import complete
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from bgrpo.decoding.fast_layers import Precision
    from bgrpo.decoding.support import EngineName
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
        precision: of the layers' matrix products.
        engine: the tree or the plain path, as ``rollout.engine`` says.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        check: Check,
        max_new_tokens: int,
        precision: Precision = "fp32",
        engine: EngineName = "auto",
    ) -> None:
        from bgrpo.decoding import DecodeEngine

        self._tokenizer = policy.tokenizer
        self._check = check
        self._max_new_tokens = max_new_tokens
        self._engine = DecodeEngine(policy.model, precision=precision, engine=engine)

    def __call__(
        self, problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        from bgrpo.decoding import DecodeSettings
        from bgrpo.policies.text import end_tokens

        settings = DecodeSettings(
            mode=mode,
            group_size=group_size,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=end_tokens(self._tokenizer),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        groups = complete(self._engine, self._tokenizer, problems, settings, seeds)
        judged = with_verdicts(groups, self._check(attempts_of(problems, groups)))
        return [group.completions for group in judged]
