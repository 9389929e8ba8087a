"""The model that decodes, which is given weights as they are published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from transformers import PreTrainedModel

from bgrpo.config.lora import LoraSection
from bgrpo.policies.adapter import NO_ADAPTER, Adapter, MergedModel
from bgrpo.policies.flat_weights import load_flat_parameters
from bgrpo.policies.lora import adapted_layers

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy


class Replica(Protocol):
    """A policy that follows the learner's.

    Attributes:
        model: that decodes.
    """

    @property
    def model(self) -> PreTrainedModel: ...

    def load(self, buffer: np.ndarray) -> None:
        """Take the weights of a buffer of :func:`bgrpo.policies.flat_weights.published_buffer`.

        Raises:
            ValueError: the buffer is of another architecture, or cut.
        """
        ...


class WholeReplica:
    """See :class:`Replica`: all weights are published.

    Args:
        model: of the same architecture; its weights are replaced.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def load(self, buffer: np.ndarray) -> None:
        """Take all weights."""
        load_flat_parameters(self.model, buffer)


class AdapterReplica:
    """See :class:`Replica`: adapters are published, and merged here, so that decoding costs what it costs without.

    Args:
        start: the run's starting policy; the adapters are its base's, which stays as it is.
        lora: which layers have adapters.
        device: where the weights go; default: where they are.
    """

    def __init__(self, start: LoadedPolicy, lora: LoraSection, device: str | None = None) -> None:
        base: Any = start.base
        if device is not None:
            base.to(device)
        self._merged = MergedModel(base, adapted_layers(base, lora.target_modules, lora.rank))
        self.model = self._merged.model

    def load(self, buffer: np.ndarray) -> None:
        """Merge this adapter into the base's weights."""
        self._merged.load(Adapter.from_buffer(buffer))


def replica_of(policy: LoadedPolicy, lora: LoraSection) -> Replica:
    """What follows a run's policy from its start."""
    return AdapterReplica(policy, lora) if lora.is_on else WholeReplica(policy.model)


def weights_of(policy: LoadedPolicy, lora: LoraSection) -> PreTrainedModel | Adapter:
    """What is published of a policy that is not being learned at the moment."""
    return (policy.adapter or NO_ADAPTER) if lora.is_on else policy.model
