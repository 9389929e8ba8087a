"""The reference policy of the KL: a frozen copy of the policy, which may follow it."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel
from trl.trainer.callbacks import SyncRefModelCallback

from bgrpo.policies.adapter import adapter_of
from bgrpo.policies.lora import set_adapter


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that does not move with the model; weights that are not learned are shared, no second copy is made."""
    kept = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, kept).requires_grad_(False)  # a memo of what is shared


def move_reference(model: PreTrainedModel, reference: PreTrainedModel, mixing: float) -> None:
    """Bring the reference nearer to the policy: (1 - mixing) × its weights + mixing × the policy's.

    Args:
        model: the policy.
        reference: changed in place; of a policy that learns an adapter, only its adapter.
        mixing: 1 where an adapter is learned: see :class:`bgrpo.config.learner.LearnerSection`.
    """
    adapter = adapter_of(model)
    if adapter is None:
        SyncRefModelCallback.sync_target_model(model, reference, mixing)
    else:
        set_adapter(reference, adapter)
