"""Which problems a training step trains on: a pure function of seed and step."""

from __future__ import annotations

import numpy as np

from bgrpo.config import TrainConfig
from bgrpo.seeds import places_of_stream


def indices_of_draw(config: TrainConfig, step: int, problems: int, draw: int = 0) -> list[int]:
    """The problems of one draw of one training step, see :func:`prompt_indices`."""
    rollout = config.rollout
    return prompt_indices(config.seed, step, rollout.prompts_per_step, problems, draw, 1 + rollout.max_extra_draws)


def prompt_indices(seed: int, step: int, count: int, size: int, draw: int = 0, draws: int = 1) -> list[int]:
    """The problems of one draw of one training step, a pure function of its arguments.

    The problems form an endless stream of epochs, each a fresh permutation of all of them. First draws take it place
    after place, so that ``steps * count / size`` epochs are ``steps`` steps, whatever was drawn besides. Draw d takes
    the same stream, ``d / draws`` of an epoch further on.

    Args:
        seed: of the run.
        step: training step, from 0.
        count: problems per draw.
        size: problems there are.
        draw: 0 ≤ draw < draws.
        draws: 1 + ``rollout.max_extra_draws``.
    """
    start = step * count + draw * size // draws
    return places_of_stream(
        start, count, size, lambda epoch: np.random.default_rng([seed, epoch]).permutation(size)
    ).tolist()


def epochs_done(config: TrainConfig, steps: int, problems: int) -> float:
    """Passes over the training problems that so many steps have made, further draws left out."""
    return steps * config.rollout.prompts_per_step / problems
