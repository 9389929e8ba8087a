"""Bytes of each kind of process of a training run, from the configuration and the shape of the policy: formulae only.

What a forward pass keeps is no formula of this module: :mod:`bgrpo.training.traced_activations` finds it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.config import TrainConfig
from bgrpo.config.learner import LearnerSection
from bgrpo.config.lora import LoraSection
from bgrpo.decoding.compiled import LANES, TILE
from bgrpo.decoding.onednn import onednn_multiplies
from bgrpo.decoding.slots import LOGITS_AT_ONCE
from bgrpo.learning.blocked_logps import LEARNER_LOGITS_AT_ONCE
from bgrpo.policies.adapter import linear_layers, sizes
from bgrpo.policies.lora import adapted_layers

_DECODED_AT_ONCE = 1024  # completions, see bgrpo.decoding.engine.DecodeEngine
_PREFILLED_AT_ONCE = 4096  # tokens, see bgrpo.decoding.prefill
_SLACK = 1.2  # of memory that the C library holds for activations of other sizes
_TEMPORARIES = 3  # tensors of logits that are there at once, of a block or of all


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a policy's shape comes to, in numbers, not bytes.

    Attributes:
        weights: of the whole model without adapter, tied ones once.
        trained: numbers that are learned: all weights, or an adapter's.
        adapted: weights of the layers that an adapter changes; 0 without one.
        products: weights of linear layers but the head, which bf16 products round.
        matrices: trained matrices of layers, which Muon moves.
        factored: Adafactor's state: rows and columns of each trained matrix, all of each vector.
        largest: of the largest trained tensor.
        head: weights of the head.
        tied: whether embedding and head are one.
        vocabulary: V.
        layers: L.
        cached: keys and values of one token, all layers, as the compiled kernel pads them.
        widest: of a token's states within a layer.
    """

    weights: int
    trained: int
    adapted: int
    products: int
    matrices: int
    factored: int
    largest: int
    head: int
    tied: bool
    vocabulary: int
    layers: int
    cached: int
    widest: int

    @classmethod
    def of(cls, model: PreTrainedModel, lora: LoraSection | None = None) -> ModelSize:
        """Of a model on any device, ``meta`` too, whose weights are then never made.

        Args:
            model: without adapter.
            lora: that is learned in place of its weights, where it is on.

        Raises:
            UserError: the model cannot have this adapter.
        """
        head: Any = model.get_output_embeddings()
        outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} | {
            id(head.weight)
        }
        linear = {
            id(parameter): parameter.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear | Conv1D)
            for parameter in module.parameters(recurse=False)
            if id(parameter) not in outer and module is not head
        }
        trained = [(one.shape, id(one) in outer) for one in model.parameters() if one.requires_grad]
        adapted = 0
        if lora is not None and lora.is_on:
            layers = linear_layers(model)
            paths = adapted_layers(model, lora.target_modules, lora.rank)
            adapted = sum(layers[path].weight.numel() for path in paths)
            inner_outer = [sizes(layers[path]) for path in paths]
            factors = [(torch.Size((lora.rank, inner)), torch.Size((outer, lora.rank))) for inner, outer in inner_outer]
            trained = [(shape, False) for pair in factors for shape in pair]
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            weights=sum(parameter.numel() for parameter in model.parameters()),
            trained=sum(shape.numel() for shape, _ in trained),
            adapted=adapted,
            products=sum(linear.values()),
            matrices=sum(shape.numel() for shape, is_outer in trained if len(shape) == 2 and not is_outer),
            factored=sum(_factored(shape) for shape, _ in trained),
            largest=max(shape.numel() for shape, _ in trained),
            head=head.weight.numel(),
            tied=any(module.weight is head.weight for module in model.modules() if isinstance(module, nn.Embedding)),
            vocabulary=head.weight.shape[0],
            layers=config.num_hidden_layers,
            cached=2 * config.num_hidden_layers * heads * -(-width // LANES) * LANES,
            widest=max(getattr(config, "intermediate_size", None) or 0, 4 * config.hidden_size),
        )


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The tokens of a step, where every completion is as long as may be and shares its prompt only.

    Attributes:
        prompt: tokens of a prompt, the mean.
        groups: of one micro-batch.
        cuts: micro-batches of an optimizer step.
        tokens: that one micro-batch puts through the model.
        scored: places of it whose logits are made.
    """

    prompt: int
    groups: int
    cuts: int
    tokens: int
    scored: int

    @classmethod
    def of(cls, config: TrainConfig, prompt: int, padded: bool) -> BatchSize:
        """Of packed groups, or of padded rows."""
        learner, rollout = config.learner, config.rollout
        of_learner = -(-rollout.prompts_per_step // (learner.workers * learner.minibatches))
        cuts = -(-of_learner // learner.micro_groups)
        groups = -(-of_learner // cuts)
        new = rollout.max_new_tokens
        nodes = rollout.group_size * (new - 1)
        if padded:
            rows = groups * rollout.group_size
            return cls(prompt, groups, cuts, rows * (prompt + new - 1), rows * new)
        return cls(prompt, groups, cuts, groups * (prompt + nodes), groups * (1 + nodes))


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One kind of process.

    Attributes:
        name: for people.
        count: how many there are.
        parts: bytes by what they are for; not all are needed at once.
        peak: most bytes at once.
        device: where all but the libraries lies, ``cpu`` or ``cuda``.
    """

    name: str
    count: int
    parts: dict[str, int]
    peak: int
    device: str = "cpu"


def optimizer_bytes(learner: LearnerSection, size: ModelSize) -> int:
    """Of the optimizer's state, its counts of steps left out."""
    each = 2 if learner.dtype == "pure_bf16" else 4
    numbers = {
        "adafactor": size.factored,
        "adamw": 2 * size.trained,
        "adamw_8bit": size.trained // 2,  # two bytes for each weight
        "muon": size.matrices + 2 * (size.trained - size.matrices),
        "sgd": 0,
    }
    return each * numbers[learner.optimizer]


def reference_bytes(learner: LearnerSection, size: ModelSize) -> int:
    """Of the reference's weights; 0 where there is none of its own."""
    if not learner.beta or learner.lora.is_on:
        return 0
    if learner.reference_dtype == "fp32":
        return 4 * size.weights
    rounded = size.products if learner.dtype == "bf16" else size.weights
    return 4 * size.weights - 2 * rounded


def gathered_bytes(size: ModelSize) -> int:
    """Of the weights that a learner of shares holds whole in its passes: embeddings and head, and the layer at hand.

    Embeddings and head have their gradients besides; the layer has those, and the next one is gathered meanwhile.
    """
    outer = size.head * (1 if size.tied else 2)
    return 4 * (2 * outer + 3 * (size.weights - outer) // size.layers)


def logits_bytes(learner: LearnerSection, size: ModelSize, scored: int) -> int:
    """Of what is made of logits at once, all of them or a block."""
    logits = scored * size.vocabulary
    blocked = learner.dtype != "fp32" or logits > LEARNER_LOGITS_AT_ONCE
    rows = max(1, min(scored, LEARNER_LOGITS_AT_ONCE // size.vocabulary))
    return 4 * _TEMPORARIES * (rows * size.vocabulary if blocked else logits)


def learner_memory(
    config: TrainConfig, size: ModelSize, batch: BatchSize, activations: int, libraries: int
) -> ProcessMemory:
    """One learner.

    Args:
        config: of the run.
        size: of the policy.
        batch: of one micro-batch.
        activations: bytes that its forward pass keeps, and what the backward pass adds to them.
        libraries: bytes of a process that has imported all and holds nothing.
    """
    learner = config.learner
    each = 2 if learner.dtype == "pure_bf16" else 4
    shares = learner.workers if learner.sharding == "full" else 1
    parts = {
        "libraries": libraries,
        "weights": each * (size.weights + (size.trained if size.adapted else 0)) // shares,
        "reference": reference_bytes(learner, size) // shares,
        "gradients": each * size.trained // shares,
        "optimizer": optimizer_bytes(learner, size) // shares,
        "gathered": gathered_bytes(size) if shares > 1 else 0,
        "activations": round(_SLACK * activations) + (2 * size.products if learner.dtype == "bf16" else 0),
        "logits": logits_bytes(learner, size, batch.scored),
    }
    lasting = parts["libraries"] + parts["weights"] + parts["reference"] + parts["optimizer"]
    of_head = 0 if size.adapted or shares > 1 else 4 * size.head  # its gradient; that of shares is gathered
    first = parts["activations"] + parts["logits"] + of_head + parts["gathered"]
    if batch.cuts > 1:
        first += parts["gradients"]
    last = parts["gradients"] + (of_head if size.tied else 0)
    step = parts["gradients"] + (24 * size.largest if learner.dtype == "pure_bf16" else 0)
    # learner 0 gathers weights and the optimizer's state to save them, and has a file made of the latter
    saving = 4 * size.weights + 2 * optimizer_bytes(learner, size) if shares > 1 else 0
    return ProcessMemory("learner", learner.workers, parts, lasting + max(first, last, step, saving))


def actor_memory(config: TrainConfig, size: ModelSize, prompt: int, plain: bool, libraries: int) -> ProcessMemory:
    """One rollout actor, while it decodes a request.

    Args:
        config: of the run.
        size: of the policy.
        prompt: tokens of a prompt.
        plain: decoded by the plain path.
        libraries: bytes of a process that has imported all and holds nothing.
    """
    rollout = config.rollout
    prompts = min(rollout.prompts_per_request, max(1, _DECODED_AT_ONCE // rollout.group_size))
    rows, new = prompts * rollout.group_size, rollout.max_new_tokens
    kept = 2 if rollout.dtype == "bf16" else 4
    packed = 0
    if plain:
        places = rows * (prompt + new)
    else:
        chunk = rollout.group_size * min(4, new)
        places = prompts * (-(-(prompt - 1) // TILE) * TILE + -(-rollout.group_size * new // chunk) * chunk)
        dtype = torch.bfloat16 if rollout.dtype == "bf16" else torch.float32
        if onednn_multiplies(torch.float32):
            packed = (dtype.itemsize if onednn_multiplies(dtype) else 4) * size.products + 4 * size.head
    parts = {
        "libraries": libraries,
        "weights": 4 * (size.weights + size.adapted),
        "packed for products": packed,
        "keys and values": kept * size.cached * places,
        "activations": 4 * 3 * size.widest * max(rows, min(_PREFILLED_AT_ONCE, prompts * prompt)),
        "logits": 4 * _TEMPORARIES * max(LOGITS_AT_ONCE, size.vocabulary),
    }
    return ProcessMemory("rollout actor", rollout.most_actors + rollout.stand_ins, parts, sum(parts.values()))


def published_bytes(config: TrainConfig, size: ModelSize) -> int:
    """Of the versions of the weights that wait to be decoded with."""
    return 4 * (size.trained if size.adapted else size.weights) * (2 + config.rollout.max_staleness)


def local_memory(
    config: TrainConfig, size: ModelSize, learner: ProcessMemory, actor: ProcessMemory, reward_models: int
) -> ProcessMemory:
    """A run in one process (``--local``), which decodes and learns in turns and holds the starting policy besides.

    What one of the two has freed the C library keeps for its next turn, so that both count in full.
    """
    held = 4 * size.weights
    shared = held if size.adapted else 0  # adapters leave the weights to all who use them
    parts = {
        "libraries": learner.parts["libraries"],
        "starting policy": held,
        "published weights": published_bytes(config, size),
        "reward models": reward_models,
        "what decodes": actor.peak - actor.parts["libraries"] - shared,
        "learner": learner.peak - learner.parts["libraries"] - shared,
    }
    return ProcessMemory("local run", 1, parts, sum(parts.values()))


def _factored(shape: torch.Size) -> int:
    """Of Adafactor's second moments."""
    if len(shape) < 2:
        return shape.numel()
    return shape[:-1].numel() + shape[:-2].numel() * shape[-1]
