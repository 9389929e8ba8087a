"""Which nodes of its prompt's tree each slot descends from, and which nodes are free.

A node holds the keys and values of one token that was fed to the model. Nodes are never moved: a node that no live slot
descends from is given to a new token. Shape letters: G prompts, K slots, T steps, N nodes, R rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bgrpo.decoding.slots import Rows, Slots


class NodePaths(Protocol):
    """What attention under a mask needs to know of the paths."""

    @property
    def capacity(self) -> int:
        """Nodes per prompt that there is room for; may grow, never shrinks."""
        ...

    @property
    def depth(self) -> int | Tensor:
        """Nodes on each path; a scalar of the device where steps are recorded."""
        ...

    def known_paths(self) -> Tensor:
        """int64 [G, K, any]: nodes of the slot's path from the root on; then its newest node may repeat."""
        ...

    def own_nodes(self, rows: Rows) -> Tensor:
        """int64 [R]: the newest node of each row."""
        ...


class ReusingPaths:
    """Keeps few nodes: room grows only when the nodes that are still needed fill it.

    Attributes:
        paths_GKT: int32; nodes of each slot from the root on, ``depth`` of them.
        depth: steps so far.
        chunk: nodes by which the capacity grows.
        capacity: see :class:`NodePaths`; a multiple of ``chunk``.

    Args:
        prompts: G.
        group_size: K.
        steps: T, the most calls of :meth:`add`.
        device: of the tensors.
    """

    def __init__(self, prompts: int, group_size: int, steps: int, device: torch.device) -> None:
        self.paths_GKT = torch.zeros(prompts, group_size, steps, dtype=torch.int32, device=device)
        self.depth = 0
        self.chunk = group_size * min(4, steps)
        self.capacity = self.chunk * (2 if steps > 4 else 1)
        self._free_GN = torch.arange(self.capacity, device=device).expand(prompts, -1)
        self._given, self._limit = 0, self.capacity

    def add(self, rows: Rows, slots: Slots) -> None:
        """Give each row a new node, one step below its slot's path; the rows are the live slots."""
        if rows.all_live:
            most = self.paths_GKT.shape[1]
        else:
            counts_G = torch.bincount(rows.prompt_R, minlength=self.paths_GKT.shape[0])
            most = int(counts_G.max())
        if self._given + most > self._limit:
            self._reclaim(slots.live_GK, most)
        if rows.all_live:
            self.paths_GKT[:, :, self.depth] = self._free_GN[:, self._given : self._given + most]
        else:
            first_G = counts_G.cumsum(0) - counts_G
            place_R = torch.arange(len(rows.prompt_R), device=counts_G.device) - first_G[rows.prompt_R]
            nodes_R = self._free_GN[rows.prompt_R, self._given + place_R]
            self.paths_GKT[rows.prompt_R, rows.slot_R, self.depth] = nodes_R.to(torch.int32)
        self._given += most
        self.depth += 1

    def descend(self, parents_GK: Tensor) -> None:
        """Let the slots be children of the given slots."""
        known = self.paths_GKT[..., : self.depth]
        self.paths_GKT[..., : self.depth] = known.gather(1, parents_GK[..., None].expand_as(known))

    def known_paths(self) -> Tensor:
        """See :class:`NodePaths`."""
        return self.paths_GKT[..., : self.depth].long()

    def own_nodes(self, rows: Rows) -> Tensor:
        """See :class:`NodePaths`."""
        return self.paths_GKT[rows.prompt_R, rows.slot_R, self.depth - 1].long()

    def _reclaim(self, live_GK: Tensor, most: int) -> None:
        """Free all nodes that no live slot descends from; make more room if that is not enough for a few steps."""
        known = self.paths_GKT[..., : self.depth]
        needed_GN = torch.zeros(len(known), self.capacity, dtype=torch.int32, device=known.device)
        needed_GN.scatter_add_(1, known.flatten(1).long(), live_GK[..., None].expand_as(known).flatten(1).int())
        largest = int((needed_GN > 0).sum(1).max())
        if self.capacity - largest < max(most, self.chunk // 2):
            needed_GN = torch.nn.functional.pad(needed_GN, (0, self.chunk))
            self.capacity += self.chunk
        self._free_GN = (needed_GN > 0).to(torch.uint8).argsort(dim=-1, stable=True)
        self._given, self._limit = 0, self.capacity - largest


class FixedPaths:
    """Nodes for every slot of every step, in tensors that stay where and as large as they are, so that a step can be
    recorded once and replayed: nothing here depends on a value that only the device knows.

    Args:
        prompts: G.
        group_size: K.
        steps: T.
        device: of the tensors.
    """

    def __init__(self, prompts: int, group_size: int, steps: int, device: torch.device) -> None:
        self.capacity = group_size * steps
        self._group_size = group_size
        self._paths_GKT = torch.zeros(prompts, group_size, steps, dtype=torch.long, device=device)
        self._step = torch.zeros((), dtype=torch.long, device=device)
        self.depth = torch.zeros_like(self._step)

    def add(self, step: Tensor) -> None:
        """Give every slot its node of this step; later places of its path name the same node until they are filled."""
        self._step.copy_(step)
        self.depth.copy_(step + 1)
        own_K1 = (step * self._group_size + torch.arange(self._group_size, device=step.device))[:, None]
        later_T = torch.arange(self._paths_GKT.shape[2], device=step.device) >= step
        self._paths_GKT.copy_(torch.where(later_T, own_K1, self._paths_GKT))

    def descend(self, parents_GK: Tensor) -> None:
        """Let the slots be children of the given slots."""
        self._paths_GKT.copy_(self._paths_GKT.gather(1, parents_GK[..., None].expand_as(self._paths_GKT)))

    def known_paths(self) -> Tensor:
        """See :class:`NodePaths`."""
        return self._paths_GKT

    def own_nodes(self, rows: Rows) -> Tensor:
        """See :class:`NodePaths`."""
        return self._step * self._group_size + rows.slot_R
