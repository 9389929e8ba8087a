"""A learner that holds its share of the weights, gradients and optimizer's state only: PyTorch's FSDP2 over learners.

A layer's weights are gathered for its passes and dropped after them. Where all weights are needed, to publish them or
to write a checkpoint, learner 0 gathers one tensor after another into a model on the CPU, and the others take part.

Everything here that gathers must be called by all learners, in the same order.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from bgrpo.learning.forward_pass import has_plain_head
from bgrpo.policies.io import empty_copy

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1 << 18  # bytes


def shard(model: PreTrainedModel, device: str, rounds_products: bool) -> None:
    """Keep this process's share of a model, in place: each layer for itself, embeddings and head together.

    Args:
        model: the same on all learners.
        device: of the learners, ``cpu`` or ``cuda``.
        rounds_products: its passes are made under autocast to bf16.
    """
    with torch.autocast(device, torch.bfloat16, enabled=rounds_products):
        has_plain_head(model)  # tries a pass, which later all learners would have to make, or none
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is written into its logits
    if device == "cpu":
        _return_freed_memory()
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    names = set(model._no_split_modules or ())
    for module in [each for each in model.modules() if type(each).__name__ in names]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if dist.get_backend() == "gloo":  # which adds, and takes no means
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def _return_freed_memory() -> None:
    """From now on the C library gives memory of a freed tensor back; it keeps blocks of up to 32 MB, hoping for more.

    What is gathered is freed all the time, so that what it keeps would be as much as what shards save.
    """
    with contextlib.suppress(AttributeError, OSError):  # of other C libraries than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def is_sharded(model: nn.Module) -> bool:
    """Whether this is a model of :func:`shard`."""
    return isinstance(model, FSDPModule)


def drop_gathered(model: nn.Module) -> None:
    """After a pass without a backward one, which would drop embeddings and head."""
    if isinstance(model, FSDPModule):
        model.reshard()


def gathered(tensor: Tensor) -> Tensor:
    """All of it; itself where it is whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: PreTrainedModel, keep: bool) -> PreTrainedModel | None:
    """The model itself where it is whole; else a copy with all weights on the CPU.

    Args:
        model: of this learner.
        keep: False: take part, for a learner that does not need it. The result is then None.
    """
    if not is_sharded(model):
        return model if keep else None
    whole: PreTrainedModel | None = None
    if keep:
        with no_init_weights():
            whole = empty_copy(model)
        whole.tie_weights()
    targets = {} if whole is None else whole.state_dict()
    for name, tensor in model.state_dict().items():
        full = gathered(tensor)
        if whole is not None:
            targets[name].copy_(full)
    return whole


def whole_state(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """The optimizer's state as it is without shards.

    Args:
        optimizer: of this learner.
        keep: False: take part only; the result is then of no use.
    """
    state = optimizer.state_dict()
    found: dict[Any, dict[str, Any]] = {}
    for weight, known in state["state"].items():
        found[weight] = {}
        for name, value in known.items():
            full = gathered(value) if isinstance(value, Tensor) else value
            found[weight][name] = None if not keep else full.cpu() if isinstance(value, DTensor) else full
    return state | {"state": found}


def own_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """This learner's share of a state of :func:`whole_state`, for its optimizer.

    Raises:
        ValueError: it is of other weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    places = [place for group in state["param_groups"] for place in group["params"]]
    found = dict(state["state"])
    for place, weight in zip(places, weights, strict=True):
        if isinstance(weight, DTensor) and place in found:
            found[place] = {name: _share(value, weight) for name, value in found[place].items()}
    return state | {"state": found}


def _share(value: Any, weight: DTensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    whole = value.to(weight.device)
    with torch.no_grad():  # every learner has read it all: nothing is sent
        return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
