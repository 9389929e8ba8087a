"""The records that travel between decoding, scoring and learning. Plain lists: cheap to send, easy to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Search = Literal["beam", "sample", "stochastic_beam", "diverse_beam"]
"""How the completions of a group are found. The most probable ones, independent ones, distinct ones by chance, or
probable ones that differ."""

RANKED: tuple[Search, ...] = ("beam", "diverse_beam")
"""Searches without chance, whose completions are distinct and have a rank."""

NEXT_PASSAGE = -1
"""Stands between the passages of a prompt, which an encoder reads apart. It is no token."""


def fused(passages: Iterable[Sequence[int]]) -> list[int]:
    """The token ids of passages as one prompt."""
    joined: list[int] = []
    for number, passage in enumerate(passages):
        joined += [NEXT_PASSAGE, *passage] if number else passage
    return joined


def passages_of(prompt_ids: Sequence[int]) -> list[list[int]]:
    """The token ids of each passage of a prompt: one, where the prompt is a single text."""
    passages: list[list[int]] = [[]]
    for token in prompt_ids:
        if token == NEXT_PASSAGE:
            passages.append([])
        else:
            passages[-1].append(token)
    return passages


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said about one completion.

    Attributes:
        outcome: an :class:`bgrpo.tasks.base.Outcome` value.
        score: weighted sum of its parts; None where nothing was scored, or a part that counts failed.
        detail: for ``timeout`` and ``error``, one line that says what happened.
        parts: value of each part of the reward, by name; None where a part does not apply, or failed.
        failures: of the parts that failed, one line each that says what happened.
        cut: parts whose reward model read only the end of the text.
        seconds: that each part took for this completion: its share of the call that scored it.
    """

    outcome: str
    score: float | None = None
    detail: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt, from the decoder to the loss.

    Attributes:
        tokens: token ids up to and including the end token when ``finished``; never empty, nothing after the end token.
        logprobs: natural-log probability of each token in the policy's distribution (samples: at their temperature;
            beams: at 1), same length.
        finished: True when the last token is an end token or completes a stop text, False when ``max_new_tokens`` cut
            it.
        text: what the judge reads, without end token and from a stop text on nothing; empty until the tokens have been
            turned into text.
        verdict: what the judge said; None until then.
        key: of one drawn without replacement, its perturbed log-probability: log-probability plus Gumbel noise.
        sampled_logprobs: natural-log probability of each token in the part of the distribution that it was drawn from;
            empty where that is the whole.
    """

    tokens: list[int]
    logprobs: list[float]
    finished: bool
    text: str = ""
    verdict: Verdict | None = None
    key: float | None = None
    sampled_logprobs: list[float] = field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Summed log-probability, no length normalisation."""
        return sum(self.logprobs)

    @property
    def judged(self) -> Verdict:
        """Its verdict.

        Raises:
            ValueError: there is none yet.
        """
        if self.verdict is None:
            raise ValueError("this completion has not been judged")
        return self.verdict

    @property
    def outcome(self) -> str:
        """Of the verdict, see :attr:`judged`."""
        return self.judged.outcome


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt, best first: position i has rank i + 1 by summed log-probability.

    Beams are distinct and may be fewer than asked for only when fewer sequences exist; stochastic beams too. Samples
    and stochastic beams are in the order drawn and carry no rank meaning.

    Attributes:
        prompt_ids: token ids of the prompt; of several passages, :data:`NEXT_PASSAGE` between them.
        completions: at least one.
        kappa: of a group drawn without replacement, the largest key of the completions that were not drawn; None where
            all that exist were drawn, and of other groups.
    """

    prompt_ids: list[int]
    completions: list[Completion]
    kappa: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ScoredGroup(Group):
    """A group whose completions all have verdicts.

    Attributes:
        rewards: one per completion; None for one that nothing could score: it teaches nothing.
        index: position of the problem in the training set.
        version: policy version that decoded it.
    """

    rewards: list[float | None]
    index: int
    version: int

    @property
    def outcomes(self) -> list[str]:
        """One :class:`bgrpo.tasks.base.Outcome` value per completion."""
        return [completion.outcome for completion in self.completions]
