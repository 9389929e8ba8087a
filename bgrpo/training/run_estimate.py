"""What a training run needs, told before it starts: memory of each kind of process, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.config import TrainConfig
from bgrpo.config.problems import GENERATED, SPLITS
from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.policies.folder import read_folder
from bgrpo.policies.io import loading
from bgrpo.policies.model_files import read_model_files
from bgrpo.scoring.readable_groups import encode_prompts
from bgrpo.tasks.base import Problem, can_generate, load_task
from bgrpo.tasks.splits import load_splits, place_of_split
from bgrpo.training.memory_estimate import (
    BatchSize,
    ModelSize,
    ProcessMemory,
    actor_memory,
    learner_memory,
    local_memory,
    published_bytes,
)
from bgrpo.training.traced_activations import activation_bytes

_FIRST_USE = 80 * 10**6  # bytes of kernels and buffers that libraries take with the first pass
_SAMPLED = 64  # problems whose prompts are measured
_REMEDIES: tuple[tuple[str, Any], ...] = (
    ("learner.micro_groups", 1),
    ("learner.gradient_checkpointing", True),
    ("learner.lora.rank", 16),
    ("learner.reference.dtype", "bf16"),
    ("learner.optimizer", "adafactor"),
    ("learner.dtype", "pure_bf16"),
    ("learner.beta", 0.0),
    ("rollout.prompts_per_request", 1),
    ("rollout.actors", 1),
)
"""What makes a run smaller, what costs least first."""


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """The policy of a run, without its weights, and how long its prompts are.

    Attributes:
        model: on the ``meta`` device.
        tokenizer: of the policy.
        problems: some to train on.
        steps: that the run is to make.
        prompt: mean tokens of a training prompt.
        reward_models: bytes of the reward models' weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    steps: int
    prompt: int
    reward_models: int


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes a run smaller.

    Attributes:
        changes: keys and their values; those of the remedies before it are among them.
        ray: peak of all processes on Ray, bytes.
        local: peak of a local run, bytes.
    """

    changes: dict[str, Any]
    ray: int
    local: int


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """Memory of a run.

    Attributes:
        size: of the policy.
        batch: of a micro-batch.
        processes: of a run on Ray.
        local: the same run in one process.
        available: bytes that this machine has free.
        remedies: one more change each, while the run does not fit; empty where it does.
    """

    size: ModelSize
    batch: BatchSize
    processes: list[ProcessMemory]
    local: ProcessMemory
    available: int
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def ray(self) -> int:
        """Bytes of all processes of a run on Ray that is on this machine alone."""
        return sum(process.count * process.peak for process in self.processes)


def policy_shape(config: TrainConfig) -> PolicyShape:
    """Read what is known of the policy, the problems and the reward models without loading a weight.

    Raises:
        UserError: as a run would.
    """
    with loading("policy", config.policy.path) as folder:
        found = read_folder(folder)
        if found.config.is_encoder_decoder:
            raise UserError(f"policy {config.policy.path}: has an encoder; doctor counts causal language models only")
        found.config.vocab_size = min(found.config.vocab_size, len(found.tokenizer))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32)
    task = load_task(config.task.name, config.task.options)
    section = config.task
    if can_generate(task):
        few = {
            name: getattr(section, name).model_copy(update={"count": _SAMPLED})
            for name in SPLITS
            if getattr(section, name).file is None
        }
        section = section.model_copy(update=few)
    known = load_splits(task, section).train
    problems = known[:_SAMPLED]
    ids = encode_prompts(found.tokenizer, problems, place_of_split(task, section, "train"))
    longest = config.rollout.max_prompt_tokens or math.inf
    prompt = math.ceil(sum(min(len(one), longest) for one in ids) / len(ids))
    held = {part.held_model: part.dtype for part in config.reward.parts.values() if part.held_model is not None}
    generated = section.train != config.task.train
    there_are = (config.task.train.count or GENERATED) if generated else len(known)
    steps = config.with_steps(there_are).steps
    return PolicyShape(model, found.tokenizer, problems, steps, prompt, sum(_model_bytes(*one) for one in held.items()))


def estimate_run(config: TrainConfig, shape: PolicyShape, libraries: int, available: int | None = None) -> RunEstimate:
    """Memory of a run, and the remedies where this machine has less.

    Args:
        config: of the run.
        shape: of its policy.
        libraries: bytes of a process that has imported all and holds nothing.
        available: bytes that may be used; default: what is free here.
    """
    free = psutil.virtual_memory().available if available is None else available
    estimate = _estimate(config, shape, libraries, free)
    if estimate.ray <= free:
        return estimate
    remedies: list[Remedy] = []
    changes: dict[str, Any] = {}
    best = estimate
    for key, value in _REMEDIES:
        tried = changes | {key: value}
        changed = _changed(config, tried)
        if changed is None:
            continue
        try:
            after = _estimate(changed, shape, libraries, free)
        except UserError:  # a model that can have no adapter
            continue
        if after.ray >= best.ray and after.local.peak >= best.local.peak:
            continue
        changes, best = tried, after
        remedies.append(Remedy(dict(changes), after.ray, after.local.peak))
        if after.ray <= free:
            break
    return RunEstimate(estimate.size, estimate.batch, estimate.processes, estimate.local, estimate.available, remedies)


def _estimate(config: TrainConfig, shape: PolicyShape, libraries: int, available: int) -> RunEstimate:
    engine = config.rollout.engine
    plain = service_of(shape.model, engine).engine == "plain"
    size, batch = ModelSize.of(shape.model, config.learner.lora), BatchSize.of(config, shape.prompt, plain)
    kept = activation_bytes(shape.model.config, config.learner, batch.tokens, engine)
    learner = learner_memory(config, size, batch, kept, libraries)
    actor = actor_memory(config, size, shape.prompt, plain, libraries)
    local = local_memory(config, size, learner, actor, shape.reward_models)
    policy = {"libraries": libraries, "starting policy": 4 * size.weights}
    processes = [
        learner,
        actor,
        ProcessMemory("driver", 1, policy, sum(policy.values())),
        ProcessMemory("weights in the object store", 1, {}, published_bytes(config, size)),
    ]
    if shape.reward_models:
        parts = {"libraries": libraries, "weights": shape.reward_models}
        processes.append(ProcessMemory("reward actor", config.reward_model.processes, parts, sum(parts.values())))
    return RunEstimate(size, batch, processes, local, available)


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig | None:
    """The configuration with these keys set; None where they change nothing, or do not go together."""
    tree = config.model_dump()
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    tree["learner"]["reference"] |= {} if tree["learner"]["beta"] else {"dtype": None}
    try:
        changed = TrainConfig.model_validate(tree)
    except ValueError:
        return None
    return None if changed == config else changed


def _model_bytes(path: str, dtype: str | None) -> int:
    with loading("reward model", path) as folder:
        numbers = sum(math.prod(shape) for shape in read_model_files(folder).shapes.values())
    return numbers * (2 if dtype == "bf16" else 4)


def libraries_bytes() -> int:
    """Of this process, once it has imported what a learner imports, and before it holds a model."""
    import bgrpo.learning.trainer  # noqa: F401

    return int(psutil.Process().memory_info().rss) + _FIRST_USE


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
