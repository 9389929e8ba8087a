"""What decodes and checks for an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from bgrpo.tasks.base import Outcome

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy
    from bgrpo.scoring.check_process import CheckProcess


DecodeMode = Literal["beam", "sample"]


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """One completion and what the check said.

    Attributes:
        tokens: token ids, end token included when finished.
        text: what was checked, without end token.
        logprob: summed natural-log probability.
        finished: False when the length limit cut it.
        outcome: a :class:`bgrpo.tasks.base.Outcome` value.
    """

    tokens: list[int]
    text: str
    logprob: float
    finished: bool
    outcome: str


class Decode(Protocol):
    """Decodes and checks; here or on the rollout pool."""

    def __call__(
        self, prompts: Sequence[str], mode: DecodeMode, completions: int, seeds: Sequence[int] | None
    ) -> list[list[JudgedCompletion]]:
        """For each prompt its beams, best first, or its samples (one seed per prompt)."""
        ...


class LocalDecoder:
    """:class:`Decode` in this process; the checks run in ``checks``, a child process with a time limit.

    Args:
        policy: what decodes.
        checks: what judges.
        max_new_tokens: longest completion, end token included; longer ones are ``truncated``, unchecked.
    """

    def __init__(self, policy: LoadedPolicy, checks: CheckProcess, max_new_tokens: int) -> None:
        from bgrpo.decoding import DecodeEngine

        self._policy = policy
        self._checks = checks
        self._max_new_tokens = max_new_tokens
        self._engine = DecodeEngine(policy.model)

    def __call__(
        self, prompts: Sequence[str], mode: DecodeMode, completions: int, seeds: Sequence[int] | None
    ) -> list[list[JudgedCompletion]]:
        from bgrpo.decoding import DecodeSettings
        from bgrpo.policies.text import decode_completion, encode_texts

        tokenizer = self._policy.tokenizer
        settings = DecodeSettings(
            mode=mode,
            completions=completions,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        groups = self._engine.decode(encode_texts(tokenizer, prompts), settings, seeds)
        decoded = [
            (prompt, completion, decode_completion(tokenizer, completion.tokens))
            for prompt, group in zip(prompts, groups, strict=True)
            for completion in group.completions
        ]
        checked = iter(
            self._checks.run([(prompt, text) for prompt, completion, text in decoded if completion.finished])
        )
        judged = iter(
            JudgedCompletion(
                completion.tokens,
                text,
                completion.logprob,
                completion.finished,
                next(checked).outcome if completion.finished else Outcome.TRUNCATED,
            )
            for _, completion, text in decoded
        )
        return [[next(judged) for _ in group.completions] for group in groups]
