"""LoRA adapters as data: which layers they change and by what, how they travel, and how they are merged.

Shape letters: R rank, I inputs of a layer, O its outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bgrpo.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

NAME = "default"
"""Of an adapter among those of a model, as peft calls the only one."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What LoRA adds to the weights of a model's layers: alpha / rank × B A each.

    Attributes:
        rank: R.
        alpha: see above.
        factors: path of the layer in the model -> (``A_RI``, ``B_OR``).
    """

    rank: int
    alpha: float
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    @property
    def numbers(self) -> int:
        """Of all factors."""
        return sum(a_RI.numel() + b_OR.numel() for a_RI, b_OR in self.factors.values())

    def tensors(self) -> dict[str, Tensor]:
        """The factors by the names that peft's files give them, on the CPU."""
        return {
            f"{path}.lora_{letter}.weight": factor.detach().cpu().contiguous()
            for path, pair in sorted(self.factors.items())
            for letter, factor in zip("AB", pair, strict=True)
        }

    def to_buffer(self) -> np.ndarray:
        """The form in which it travels to rollout actors: uint8, 1-D; equal adapters give equal bytes."""
        numbers = {"rank": torch.tensor(self.rank), "alpha": torch.tensor(self.alpha, dtype=torch.float64)}
        return np.frombuffer(save(self.tensors() | numbers), np.uint8)

    @classmethod
    def from_buffer(cls, buffer: np.ndarray) -> Adapter:
        """What :meth:`to_buffer` gave.

        Raises:
            ValueError: it is something else, or cut.
        """
        try:
            tensors = load(buffer.tobytes())
            rank, alpha = int(tensors.pop("rank")), float(tensors.pop("alpha"))
            return cls(rank, alpha, pairs_of(tensors))
        except (SafetensorError, LookupError, RuntimeError, UserError) as error:
            raise ValueError(f"these bytes are no adapter: {one_line(str(error))}") from error


NO_ADAPTER = Adapter(1, 1.0, {})
"""Changes nothing."""


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors in what :meth:`Adapter.tensors` gives.

    Raises:
        UserError: one has another name, or one of two is missing.
    """
    paths = {name.rsplit(".lora_", 1)[0] for name in tensors}
    expected = {f"{path}.lora_{letter}.weight" for path in paths for letter in "AB"}
    if odd := sorted(expected ^ tensors.keys()):
        problem = "is missing" if odd[0] in expected else "is no factor of a linear layer"
        raise UserError(f"weight {one_line(odd[0], 100)} {problem}")
    return {path: (tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]) for path in sorted(paths)}


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that peft's layers in a model hold, its tensors shared with theirs; None where there are none."""
    layers = {path: module for path, module in model.named_modules() if NAME in getattr(module, "lora_A", ())}
    for layer in layers.values():
        factors = {path: (each.lora_A[NAME].weight, each.lora_B[NAME].weight) for path, each in layers.items()}
        return Adapter(layer.r[NAME], float(layer.lora_alpha[NAME]), factors)
    return None


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """What can have an adapter, by path: linear layers, GPT-2's too, whose weights are not those of an embedding."""
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings
    }


def sizes(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    outer, inner = weight_of(layer).shape
    return (inner, outer) if isinstance(layer, nn.Linear) else (outer, inner)


def weight_of(layer: nn.Module) -> Tensor:
    """Of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in modules of its own, which share its tensors: nothing but structure is copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)  # a memo of what is not to be copied


class MergedModel:
    """A model with an adapter merged into its weights, beside the model without: W = W0 + scale × B A.

    It is always merged from W0, so that one adapter gives the same weights whatever was loaded before.

    Attributes:
        model: with the adapter. It shares all weights with the base but those of ``paths``.

    Args:
        base: never changed.
        paths: of the layers that adapters may change.
    """

    def __init__(self, base: PreTrainedModel, paths: Collection[str]) -> None:
        self.model = shared_copy(base)
        layers = linear_layers(base)
        self._base = {path: weight_of(layers[path]) for path in paths}
        self._is_transposed = {path for path in paths if not isinstance(layers[path], nn.Linear)}
        self._own = {path: nn.Parameter(weight.detach().clone()) for path, weight in self._base.items()}
        for path, weight in self._own.items():
            self.model.get_submodule(path).weight = weight

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Take this adapter's weights.

        Raises:
            ValueError: it changes other layers, or has other shapes.
        """
        if foreign := sorted(adapter.factors.keys() - self._base.keys()):
            raise ValueError(f"an adapter of other layers, as {one_line(foreign[0], 100)}")
        for path, weight in self._base.items():
            if path not in adapter.factors:
                self._own[path].copy_(weight)
                continue
            a_RI, b_OR = (factor.to(weight) for factor in adapter.factors[path])
            left, right = (a_RI.t(), b_OR.t()) if path in self._is_transposed else (b_OR, a_RI)
            if (len(left), right.shape[1]) != tuple(weight.shape):
                raise ValueError(f"an adapter of another shape: {path} has weights of {tuple(weight.shape)}")
            torch.addmm(weight.detach(), left, right, alpha=adapter.scale, out=self._own[path].data)


def merged(base: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """A model with the adapter's weights.

    Raises:
        UserError: the adapter does not fit the model; names the layer.
    """
    layers = linear_layers(base)
    for path, (a_RI, b_OR) in adapter.factors.items():
        if path not in layers:
            kind = type(base).__name__
            raise UserError(f"an adapter of another model: {kind} has no linear layer {one_line(path, 100)}")
        if (a_RI.shape[1], len(b_OR)) != sizes(layers[path]):
            raise UserError(
                f"an adapter of another model: its {one_line(path, 100)} takes {a_RI.shape[1]} to {len(b_OR)} numbers, "
                f"the model's {sizes(layers[path])[0]} to {sizes(layers[path])[1]}"
            )
    result = MergedModel(base, adapter.factors.keys())
    result.load(adapter)
    return result.model
