"""The learners' process group, whose meeting point listens on one address of the first learner's node, not on all.

PyTorch's own set-up opens its key-value store, which knows no token, on every address of the machine.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_served: dict[str, dist.TCPStore] = {}
"""The store that this process serves; it ends with the reference to it."""


class LearnerGroupConfig(TorchConfig):
    """Ray Train's settings of the process group; only how it is set up differs."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets it up."""
        return _LearnerBackend


class _LearnerBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, _ = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_torch_distributed_env_vars)
        port = worker_group.execute_single(0, serve_store, address, backend_config.timeout_s)
        joined = [
            worker_group.execute_single_async(
                rank,
                join_group,
                backend_config.backend,
                address,
                port,
                rank,
                len(worker_group),
                backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)


def serve_store(address: str, timeout_s: float) -> int:
    """Serve the store that learners meet at, on ``address`` alone.

    Args:
        address: of this node.
        timeout_s: longest wait of its users for each other.

    Returns:
        Its port.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = int(listener.getsockname()[1])
        _served["store"] = dist.TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )
    return port


def join_group(backend: str, address: str, port: int, rank: int, size: int, timeout_s: float) -> None:
    """Make this process one of the group; waits for the others.

    Args:
        backend: ``gloo`` or ``nccl``.
        address: of the store.
        port: of the store.
        rank: of this process.
        size: how many there are.
        timeout_s: of every operation of the group.
    """
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
