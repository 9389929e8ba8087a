"""The records that travel between decoding, verification and learning. Plain lists: cheap to send, easy to compare."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        tokens: token ids up to and including the end token when ``finished``; never empty, nothing after the end token.
        logprobs: natural-log probability of each token under the decoding policy at temperature 1, same length.
        finished: True when the last token is the end token, False when ``max_new_tokens`` cut it.
    """

    tokens: list[int]
    logprobs: list[float]
    finished: bool

    @property
    def logprob(self) -> float:
        """Summed log-probability, no length normalisation."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt, best first: position i has rank i + 1 by summed log-probability.

    Beams are distinct and may be fewer than asked for only when fewer sequences exist. Samples keep draw order and
    carry no rank meaning.
    """

    completions: list[Completion]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its prompt and what the verifier said.

    Attributes:
        index: position of the problem in the training set.
        prompt_ids: prompt tokens.
        completions: as in :class:`Group`.
        outcomes: one :class:`bgrpo.tasks.base.Outcome` value per completion.
        scores: user reward function's value per completion, or None when rewards come from outcomes.
        version: policy version that decoded it.
    """

    index: int
    prompt_ids: list[int]
    completions: list[Completion]
    outcomes: list[str]
    version: int
    scores: list[float] | None = field(default=None)
