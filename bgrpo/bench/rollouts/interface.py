"""What every engine that is compared offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

Prompts = Sequence[Sequence[int]]


class Beam(NamedTuple):
    """One completion.

    Attributes:
        tokens: up to and including the end token, where it came.
        logprob: their summed log-probability, as the engine gives it.
    """

    tokens: tuple[int, ...]
    logprob: float


class Engine(Protocol):
    """Decodes K completions of every prompt, as the case it was made for says."""

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        """What is timed: a decode as a trainer would ask for it."""
        ...

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """The same decode as records that can be compared, one list per prompt."""
        ...
