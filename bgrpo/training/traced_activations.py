"""What a forward pass of the learner keeps for its backward pass: found with one and two layers of the model's shape.

The layers are real and so are their passes, of a few tokens; what is kept grows with the tokens and with the layers, so
that one of each more tells all. The vocabulary is cut: what logits need is known without a trial.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from bgrpo.config.learner import LearnerSection
from bgrpo.config.lora import LoraSection
from bgrpo.decoding.support import EngineName, service_of
from bgrpo.errors import UserError
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.packing import PackedGroups
from bgrpo.learning.padded_rows import lay_out_of
from bgrpo.learning.recomputation import recompute_layers
from bgrpo.learning.rounded_weights import round_weights
from bgrpo.policies.io import disable_dropout
from bgrpo.policies.lora import adapted_layers, attach

_VOCABULARY = 61
_PROMPT, _COMPLETIONS, _NEW = 33, 3, 43  # tokens; no width of a layer is a sum of these


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are made inside the context and still there.

    Args:
        model: tensors shaped as its weights, gradients and rounded copies, do not count.

    Attributes:
        peak: most at a time.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._left_out = {tuple(one.shape) for one in model.parameters() if one.ndim > 1}
        self._left_out |= {shape[::-1] for shape in self._left_out}
        self._known = {id(one.untyped_storage()): one.untyped_storage() for one in model.parameters()}
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result)
        return results

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name = id(storage)
        if name in self._known or name in self._counted or tuple(tensor.shape) in self._left_out:
            return
        self._counted.add(name)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, name, storage.nbytes())

    def _forget(self, name: int, size: int) -> None:
        self._counted.discard(name)
        self._live -= size


def activation_bytes(config: PretrainedConfig, learner: LearnerSection, tokens: int, engine: EngineName) -> int:
    """Of a micro-batch of so many tokens: what its passes hold at their peak beside weights, gradients and logits.

    Args:
        config: of the policy.
        learner: says how it is learned.
        tokens: that go through the model.
        engine: as ``rollout.engine`` says.
    """
    one, few = _peak(config, learner, 1, engine)
    two, _ = _peak(config, learner, 2, engine)
    return (one + (two - one) * (config.num_hidden_layers - 1)) * tokens // few


def _peak(config: PretrainedConfig, learner: LearnerSection, layers: int, engine: EngineName) -> tuple[int, int]:
    """Bytes, and the tokens that they are for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_cut(config, layers), dtype=torch.float32)
    if learner.dtype == "pure_bf16":
        round_weights(model)
    laid_out: Any = lay_out_of(service_of(model, engine))(_groups(), "cpu")
    if learner.lora.is_on:
        model = attach(model, _adapted(model, learner.lora), learner.lora.rank, learner.lora.alpha_value)
    model.train()
    if learner.gradient_checkpointing:
        recompute_layers(model)
    scoring = Scoring(arithmetic="bf16" if learner.dtype == "bf16" else "fp32")
    laid_out.logps(model, scoring)  # what is made once is made now
    live = LiveBytes(model)
    with live:
        logps_BC, _ = laid_out.logps(model, scoring)
        logps_BC.sum().backward()
    return live.peak, laid_out_tokens(laid_out)


def _adapted(model: PreTrainedModel, lora: LoraSection) -> list[str]:
    """Of a model with few layers; where paths of others are named, as if all linear layers were."""
    try:
        return adapted_layers(model, lora.target_modules, lora.rank)
    except UserError:
        return adapted_layers(model, "all-linear", lora.rank)


def _cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    small = copy.deepcopy(config)
    disable_dropout(small)
    all_layers = config.num_hidden_layers
    for name, value in vars(small).items():
        if isinstance(value, list) and len(value) == all_layers:
            setattr(small, name, value[:layers])
    small.num_hidden_layers, small.vocab_size = layers, _VOCABULARY
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    return small


def _groups() -> list[tuple[list[int], list[list[int]]]]:
    """One, whose completions share nothing."""
    completions = [
        [(place * 7 + first * 11) % _VOCABULARY for place in range(_NEW)] for first in range(1, _COMPLETIONS + 1)
    ]
    return [(list(range(_PROMPT)), completions)]


def laid_out_tokens(laid_out: Any) -> int:
    """Tokens that go through the model for groups laid out for it, fillers included."""
    ids: Tensor = laid_out.input_ids_1T if isinstance(laid_out, PackedGroups) else laid_out.ids_BL
    return ids.numel()
