"""What a learner begins with: the policy to be moved, and the reference, from the start or from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from bgrpo.config import TrainConfig
from bgrpo.learning.learner_state import load_adapter, policy_folder
from bgrpo.policies.adapter import Adapter
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.lora import adapted_layers, attach


def starting_point(
    config: TrainConfig, start: LoadedPolicy | None, resume: Path | None
) -> tuple[LoadedPolicy, PreTrainedModel | None]:
    """The policy and the reference; None for one that the trainer makes, or that is not needed.

    Args:
        config: of the run.
        start: the starting policy, where it is in memory; with ``learner.lora`` all that is returned shares its
            weights.
        resume: checkpoint to continue from.

    Raises:
        UserError: the checkpoint's policy cannot be read.
    """
    if config.learner.lora.is_on:
        return _with_adapter(config, start or load_policy(config.policy.path), resume)
    policy = load_policy(config.policy.path if resume is None else str(policy_folder(resume)))
    other = config.learner.reference.path
    if not config.learner.beta or (resume is None and other is None):
        return policy, None
    return policy, load_policy(other or config.policy.path).model


def _with_adapter(
    config: TrainConfig, start: LoadedPolicy, resume: Path | None
) -> tuple[LoadedPolicy, PreTrainedModel | None]:
    model = attached(config, start.base, start.adapter)
    reference: PreTrainedModel | None = None
    if config.learner.reference.path is not None:
        reference = load_policy(config.learner.reference.path).model
    elif config.learner.beta > 0:
        # the base itself is what the policy is with its adapter off
        moves = config.learner.reference.sync_every > 0 or start.adapter is not None
        reference = attached(config, start.base, start.adapter) if moves else start.base
    if resume is not None:
        load_adapter(policy_folder(resume), model)
    return LoadedPolicy(model, start.tokenizer, start.path), reference


def attached(config: TrainConfig, base: PreTrainedModel, start: Adapter | None = None) -> PreTrainedModel:
    """The base with the adapter that ``learner.lora`` describes, see :func:`bgrpo.policies.lora.attach`."""
    lora = config.learner.lora
    paths = adapted_layers(base, lora.target_modules, lora.rank)
    return attach(base, paths, lora.rank, lora.alpha_value, start, config.seed)
