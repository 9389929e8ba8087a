"""A policy's weights, or its adapter, as one flat buffer, the form in which they travel to rollout actors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bgrpo.policies.adapter import Adapter

_HEADER = 32  # bytes: SHA-256 of names and shapes


def flatten_parameters(model: PreTrainedModel, used: np.ndarray | None = None) -> np.ndarray:
    """Every floating-point weight as float32, in the model's order, tied weights once, behind a 32-byte fingerprint.

    Args:
        model: the policy.
        used: a buffer of an earlier call that nobody reads any more, to be written again: new memory costs more than
            the copy.

    Returns:
        uint8, 1-D, 32 + 4 × (number of weights) bytes.
    """
    tensors = _weights(model)
    size = _HEADER + 4 * sum(tensor.numel() for tensor in tensors.values())
    buffer = np.empty(size, np.uint8) if used is None or used.size != size else used
    buffer[:_HEADER] = np.frombuffer(_fingerprint(tensors), np.uint8)
    floats = torch.from_numpy(buffer[_HEADER:].view(np.float32))
    offset = 0
    for tensor in tensors.values():
        floats[offset : offset + tensor.numel()].view(tensor.shape).copy_(tensor.detach())
        offset += tensor.numel()
    return buffer


def published_buffer(weights: PreTrainedModel | Adapter, used: np.ndarray | None = None) -> np.ndarray:
    """What travels to rollout actors: all weights of a model (:func:`flatten_parameters`), or an adapter alone."""
    from bgrpo.policies.adapter import Adapter

    return weights.to_buffer() if isinstance(weights, Adapter) else flatten_parameters(weights, used)


def published_bytes(weights: PreTrainedModel | Adapter) -> int:
    """Size of :func:`published_buffer`, without names and header."""
    from bgrpo.policies.adapter import Adapter

    if isinstance(weights, Adapter):
        return 4 * weights.numbers
    return 4 * sum(tensor.numel() for tensor in _weights(weights).values())


def load_flat_parameters(model: PreTrainedModel, buffer: np.ndarray) -> None:
    """Copy the weights of :func:`flatten_parameters` into a model of the same architecture, of any dtype and device.

    Args:
        model: changed in place.
        buffer: may be read-only.

    Raises:
        ValueError: the buffer comes from another architecture, or is cut.
    """
    tensors = _weights(model)
    expected = _HEADER + 4 * sum(tensor.numel() for tensor in tensors.values())
    if buffer.dtype != np.uint8 or buffer.ndim != 1 or buffer.size != expected:
        raise ValueError(
            f"weights of another architecture: expected {expected} bytes for {len(tensors)} weights, "
            f"got {buffer.nbytes} bytes of {buffer.dtype} in shape {buffer.shape}"
        )
    if buffer[:_HEADER].tobytes() != _fingerprint(tensors):
        raise ValueError("weights of another architecture: names or shapes differ, though their total size is equal")
    floats = buffer[_HEADER:].view(np.float32)
    offset = 0
    with torch.no_grad():
        for tensor in tensors.values():
            piece = floats[offset : offset + tensor.numel()].reshape(tensor.shape)
            if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
                np.copyto(tensor.numpy(), piece)
            else:
                tensor.copy_(torch.from_numpy(piece.copy()))  # torch takes no read-only arrays
            offset += tensor.numel()


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Floating-point weights and buffers by name, in the order of ``state_dict``, tied ones under their first name."""
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


def _fingerprint(tensors: dict[str, torch.Tensor]) -> bytes:
    text = ";".join(f"{name}:{tuple(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256(text.encode()).digest()
