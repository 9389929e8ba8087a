"""A rollout source that decodes nothing: a learner that never waits."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from bgrpo.groups import ScoredGroup
from bgrpo.policies.adapter import Adapter


class ReplayedGroups:
    """Gives out groups that were decoded before, as if by the version asked for.

    Args:
        groups: one per problem.
    """

    def __init__(self, groups: list[ScoredGroup]) -> None:
        self._groups = groups

    def publish(self, version: int, weights: PreTrainedModel | Adapter) -> None:
        """Nobody decodes."""

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """Nobody decodes."""

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """The groups of these problems."""
        return [replace(self._groups[index], index=index, version=version) for index in indices]
