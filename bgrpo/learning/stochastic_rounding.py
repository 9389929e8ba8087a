"""Optimizers of bf16 weights, whose steps are smaller than what bf16 can tell apart: rounding by chance keeps them.

Each step of a weight is computed in fp32 by the optimizer as it is. The result is rounded to one of the two bf16
numbers around it, with probabilities that make the mean exact, and so is what the optimizer remembers. What is drawn
depends on the seed, the step and the weight alone, so that every learner draws the same, and so does a resumed run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

_AT_ONCE = 1 << 22  # numbers that are rounded at a time
_DROPPED_BITS = 16  # of fp32, to make bf16


class StochasticallyRounded(Optimizer):
    """Another optimizer's steps on bf16 weights; weights and state are rounded by chance, one weight after another.

    Args:
        inner: an optimizer of these weights, whose step treats each weight alone, whatever its dtype.
        seed: of the run.
        steps_done: number of optimizer steps made so far.
    """

    def __init__(self, inner: Optimizer, seed: int, steps_done: Callable[[], int]) -> None:
        self._inner, self._seed, self._steps_done = inner, seed, steps_done
        super().__init__(inner.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all weights that have a gradient."""
        result = None if closure is None else closure()
        places = [(group, weight) for group in self.param_groups for weight in group["params"]]
        for place, (group, weight) in enumerate(places):
            if weight.grad is None:
                continue
            exact = weight.float()
            exact.grad = weight.grad.float()
            known = self.state[weight]
            self._inner.param_groups = [group | {"params": [exact]}]
            self._inner.state.clear()
            self._inner.state[exact] = {name: _exact(value) for name, value in known.items()}
            self._inner.step()
            weight.copy_(self._rounded(exact, place, 0))
            moved = self._inner.state.pop(exact, {})
            for part, name in enumerate(sorted(moved), start=1):
                known[name] = self._rounded(moved[name], place, part) if _is_rounded(name, moved[name]) else moved[name]
        return result

    def _rounded(self, values: Tensor, place: int, part: int) -> Tensor:
        draws = np.random.SFC64([self._seed, self._steps_done(), place, part])
        return round_stochastically(values, draws)


def round_stochastically(values: Tensor, draws: np.random.SFC64) -> Tensor:
    """fp32 numbers as bf16: each becomes a neighbour, the nearer the likelier; what bf16 holds exactly stays.

    Args:
        values: fp32, any shape and device.
        draws: where 16 random bits for each number come from.
    """
    flat = values.reshape(-1)
    rounded = torch.empty_like(flat, dtype=torch.bfloat16)
    for start in range(0, len(flat), _AT_ONCE):
        piece = flat[start : start + _AT_ONCE]
        raw = draws.random_raw(-(-len(piece) // 4))  # 64 bits each
        noise = torch.from_numpy(raw.view(np.uint16)[: len(piece)].astype(np.int32)).to(values.device)
        bits = noise.add_(piece.view(torch.int32)).bitwise_and_(-(1 << _DROPPED_BITS))
        rounded[start : start + _AT_ONCE] = bits.view(torch.float32)
    return rounded.view(values.shape)


def _is_rounded(name: str, value: Any) -> bool:
    return name != "step" and isinstance(value, Tensor) and value.dtype == torch.float32


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
