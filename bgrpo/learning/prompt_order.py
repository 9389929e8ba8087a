"""Which problems a training step trains on: a pure function of seed and step."""

from __future__ import annotations

import numpy as np

from bgrpo.config import TrainConfig


def indices_of_draw(config: TrainConfig, step: int, problems: int, draw: int = 0) -> list[int]:
    """The problems of one draw of one training step, see :func:`prompt_indices`."""
    rollout = config.rollout
    return prompt_indices(config.seed, step, rollout.prompts_per_step, problems, draw, 1 + rollout.max_extra_draws)


def prompt_indices(seed: int, step: int, count: int, size: int, draw: int = 0, draws: int = 1) -> list[int]:
    """The problems of one draw of one training step, a pure function of its arguments.

    The problems form an endless stream of epochs, each a fresh permutation of all of them. A step owns ``draws *
    count`` places of the stream, whether or not it needs its further draws.

    Args:
        seed: of the run.
        step: training step, from 0.
        count: problems per draw.
        size: problems there are.
        draw: 0 ≤ draw < draws.
        draws: 1 + ``rollout.max_extra_draws``.
    """
    start = (step * draws + draw) * count
    epochs = range(start // size, (start + count - 1) // size + 1)
    orders = [np.random.default_rng([seed, epoch]).permutation(size) for epoch in epochs]
    offset = start - epochs[0] * size
    return np.concatenate(orders)[offset : offset + count].tolist()
