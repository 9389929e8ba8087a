"""Stateless seeds: a random stream is named by what it is for, never by what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np


def rollout_seed(seed: int, step: int, index: int, draw: int = 0) -> int:
    """Seed of one prompt's samples.

    Args:
        seed: of the run.
        step: training step, or any number that names the occasion.
        index: position of the problem in its data set.
        draw: 0 for a step's first prompts, 1 … for the further ones that replace uninformative groups.

    Returns:
        An integer in [0, 2**63), the same on every machine: the first eight bytes of the BLAKE2b hash of the arguments.
    """
    digest = hashlib.blake2b(repr((seed, step, index, draw)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def places_of_stream(start: int, count: int, size: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """Some places of an endless stream of epochs, each of which holds everything once.

    Args:
        start: first place, from 0.
        count: of places, at least one.
        size: things there are.
        order: gives the permutation of ``range(size)`` that an epoch, counted from 0, is.

    Returns:
        [count] indices.
    """
    epochs = range(start // size, (start + count - 1) // size + 1)
    offset = start - epochs[0] * size
    return np.concatenate([order(epoch) for epoch in epochs])[offset : offset + count]
