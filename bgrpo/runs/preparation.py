"""Everything that can be wrong with a run's input is found here, before any process starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedModel

from bgrpo.config import TrainConfig
from bgrpo.config.lora import LoraSection
from bgrpo.decoding.support import EngineName, context_of, service_of
from bgrpo.errors import UserError
from bgrpo.files import sha256
from bgrpo.groups import Verdict
from bgrpo.policies.adapter import linear_layers, sizes
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.lora import adapted_layers, check_alike, check_exact
from bgrpo.runs.kept_policies import refuse_changed
from bgrpo.runs.mlflow_tracking import check_tracking
from bgrpo.runs.prompt_lengths import fit_prompts
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.same_input import Inputs, KnownInput, policy_digest, policy_input
from bgrpo.scoring.attempts import trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.scoring.readable_groups import decode_settings_of
from bgrpo.tasks.base import Outcome, Progress, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import Splits, load_splits, place_of_split

SPLITS = ("train", "validation", "test")
CHECKPOINT_BYTES = 12
"""Of a checkpoint for each weight: fp32, and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """The checked input of a run.

    Attributes:
        policy: the starting policy.
        splits: disjoint problems, whose prompts the policy can read.
        counts: for each split how many problems it has, and how many were left out or cut for their length.
        inputs: the policy, and whatever else lies outside the run's folder: a reference of the KL of its own, the
            completions allowed, reward models and sentence encoders.
    """

    policy: LoadedPolicy
    splits: Splits
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=dict)


def check_input(config: TrainConfig, splits: Splits | None = None, progress: Progress | None = None) -> Preparation:
    """Load and check the policy and the problems, and try the reward function or the task's check on one of them.

    Args:
        config: of the run.
        splits: the problems of a run that goes on; else they are read or generated.
        progress: called while large files are read.

    Raises:
        UserError: what is wrong, where, and what would be right.
    """
    check_tracking(config.tracking, config.run.dir)
    if config.learner.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise UserError(
            "learner.optimizer=adamw_8bit: bitsandbytes is not installed here: pip install bitsandbytes, or take "
            "another; adafactor needs little memory too"
        )
    policy = check_policy(config.policy.path, config.rollout.engine, config.rollout.dtype)
    lora = config.learner.lora
    if lora.is_on:
        check_adapted(policy, lora)
    if config.learner.gradient_checkpointing:
        check_recomputable(policy.model)
    inputs = {"policy": policy_input(policy)} | _check_reference(config, policy)
    if config.learner.sharding == "full" and policy.model.config.is_encoder_decoder:
        raise UserError("learner.sharding=full: this policy has an encoder, and only decoder-only models are sharded")
    decode_settings_of(config.rollout, config.decode_mode, policy.tokenizer)
    task = load_task(config.task.name, config.task.options)
    splits = splits or load_splits(task, config.task, progress)
    fitted = {
        name: fit_prompts(getattr(splits, name), policy, config.rollout, place_of_split(task, config.task, name))
        for name in SPLITS
    }
    notes = [*splits.notes, *(each.note for each in fitted.values() if each.note)]
    notes += filter(None, [service_of(policy.model, config.rollout.engine).note])
    splits = Splits(**{name: each.problems for name, each in fitted.items()}, notes=notes)
    if len(splits.train) < config.rollout.prompts_per_step:
        raise UserError(
            f"task.train has {len(splits.train)} problems, fewer than rollout.prompts_per_step="
            f"{config.rollout.prompts_per_step}: give more problems or take fewer prompts per step"
        )
    for name, part in config.reward.parts.items():
        if part.held_model is not None and _is_policy(config.policy.path, part.held_model):
            key = "model" if part.encoder is None else "encoder"
            raise UserError(
                f"reward.parts.{name}.{key}={part.held_model}: is the policy itself, which would be paid for what it "
                "already thinks; name another model"
            )
    inputs |= _files_outside(config)
    judge = Judge(config)
    judge.rewards([Verdict(Outcome.CORRECT, 1.0)] * config.rollout.group_size)
    with judge.start(trial_of(splits.train)) as scorer:
        judge.check_applies(scorer, splits.train)
    return Preparation(policy, splits, {name: each.counts() for name, each in fitted.items()}, inputs)


def _check_reference(config: TrainConfig, policy: LoadedPolicy) -> Inputs:
    """The reference of the KL where it is not the starting policy: it must read what the policy reads.

    Raises:
        UserError: it cannot be loaded, or does not fit the policy.
    """
    path, engine = config.learner.reference.path, config.rollout.engine
    if path is None:
        return {}
    asked = f"learner.reference.path={path}"
    try:
        refuse_changed(path)
        reference = load_policy(path)
        way = service_of(reference.model, engine).engine
    except UserError as error:
        raise UserError(f"{asked}: {error}") from None
    if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(f"{asked}: has another vocabulary than policy {policy.path}; give one with the same tokenizer")
    ours, theirs = policy.model.config, reference.model.config
    if theirs.is_encoder_decoder != ours.is_encoder_decoder:
        kind = "no encoder, and the policy has one" if ours.is_encoder_decoder else "an encoder, and the policy none"
        raise UserError(f"{asked}: has {kind}: they would read different prompts")
    context, limit = context_of(ours), context_of(theirs)
    if limit is not None and (context is None or limit < context):
        read = "any number of" if context is None else f"up to {context}"
        raise UserError(f"{asked}: reads up to {limit} tokens, and the policy {read}: give one that reads as many")
    if way != service_of(policy.model, engine).engine:
        raise UserError(f"{asked}: the fast tree does not score both it and the policy; set rollout.engine=plain")
    return {"reference": KnownInput(path, policy_digest(reference))}


def _files_outside(config: TrainConfig) -> Inputs:
    """The completions allowed, and the reward models and sentence encoders of parts."""
    found: Inputs = {}
    if config.rollout.allowed:
        found["rollout.allowed"] = KnownInput(config.rollout.allowed, sha256(Path(config.rollout.allowed)))
    for name, part in config.reward.parts.items():
        if part.held_model is not None:
            key = "model" if part.encoder is None else "encoder"
            found[f"reward.parts.{name}.{key}"] = KnownInput(part.held_model, _scorer_digest(part.held_model))
    return found


def check_adapted(policy: LoadedPolicy, lora: LoraSection) -> None:
    """Refuse adapters that this policy cannot have.

    Raises:
        UserError: says which layers there are, or what the policy's own adapter is; or the policy has an encoder.
    """
    if policy.base.config.is_encoder_decoder:
        raise UserError(
            f"learner.lora.rank={lora.rank}: adapters are for causal language models, and this policy has an encoder; "
            f"leave learner.lora out"
        )
    paths = adapted_layers(policy.base, lora.target_modules, lora.rank)
    if policy.adapter is not None:
        check_alike(policy.adapter, paths, lora.rank, lora.alpha_value)
    check_exact(policy.base, paths, lora.rank, lora.alpha_value)


def checkpoint_room(policy: LoadedPolicy, has_reference: bool, lora: LoraSection) -> int:
    """Bytes that the disk must have for one checkpoint, which may hold a reference too, and the final policy.

    Args:
        policy: the starting one.
        has_reference: that moves.
        lora: where it is on, a checkpoint holds an adapter.
    """
    learned = sum(weight.numel() for weight in policy.model.parameters())
    if lora.is_on:
        layers = linear_layers(policy.base)
        paths = adapted_layers(policy.base, lora.target_modules, lora.rank)
        learned = sum(lora.rank * sum(sizes(layers[path])) for path in paths)
    return (CHECKPOINT_BYTES + 4 + (4 if has_reference else 0)) * learned


def save_problems(splits: Splits, folder: RunFolder) -> None:
    """Keep the problems in the run folder."""
    for name in SPLITS:
        write_problems(folder.data / f"{name}.jsonl", getattr(splits, name))


def load_problems(folder: RunFolder) -> Splits:
    """The problems that :func:`save_problems` kept."""
    train, validation, test = (read_problems(folder.data / f"{name}.jsonl") for name in SPLITS)
    return Splits(train, validation, test)


def check_policy(path: str, engine: EngineName = "auto", precision: str = "fp32") -> LoadedPolicy:
    """Load a policy and check all that can be known of it before a process starts.

    Raises:
        UserError: see :func:`bgrpo.policies.io.load_policy`, :func:`bgrpo.decoding.support.service_of` and
            :func:`bgrpo.runs.kept_policies.refuse_changed`.
    """
    refuse_changed(path)
    policy = load_policy(path)
    service_of(policy.model, engine).check_precision(precision)
    return policy


def check_recomputable(model: PreTrainedModel) -> None:
    """Refuse gradient checkpointing of a model whose layers cannot be computed again.

    Raises:
        UserError: names the option.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"learner.gradient_checkpointing=true: {type(model).__name__} (model_type {model.config.model_type!r}) "
            f"cannot compute its layers again; leave it out, and take a smaller learner.micro_groups"
        )


def _is_policy(policy: str, reward_model: str) -> bool:
    from bgrpo.scoring.reward_model import same_weights

    return same_weights(policy, reward_model)


def _scorer_digest(path: str) -> str:
    from bgrpo.scoring.reward_model import scorer_digest

    return scorer_digest(path)
