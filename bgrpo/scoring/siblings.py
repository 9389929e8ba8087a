"""Advantages of tokens, each against the other ways to go on from the same beginning.

The completions of a group are a tree. A completion's reward says little of the tokens that it shares with others: what
decides is the branch. Here a token counts by what its branch is worth, less what its parent is worth.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


class _Tree:
    """Completions as nodes; what lies under each of them.

    Args:
        completions: token ids.
        rewards: of each.
        weights: of each.
    """

    def __init__(self, completions: Sequence[Sequence[int]], rewards: np.ndarray, weights: np.ndarray) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._below: list[list[int]] = [list(range(len(completions)))]
        self.paths: list[list[int]] = []
        for owner, tokens in enumerate(completions):
            path = [0]
            for token in tokens:
                node = self._children.setdefault((path[-1], token), len(self._below))
                if node == len(self._below):
                    self._below.append([])
                self._below[node].append(owner)
                path.append(node)
            self.paths.append(path)
        self._rewards, self._weights = rewards, weights
        self._values: dict[int, float] = {}

    def gain(self, parent: int, node: int) -> float:
        """What a node is worth above its parent, exactly 0 where all below the parent have one reward."""
        if len(self._below[node]) == len(self._below[parent]) or np.ptp(self._rewards[self._below[parent]]) == 0:
            return 0.0
        return self._value(node) - self._value(parent)

    def _value(self, node: int) -> float:
        """Weighted mean of the rewards below."""
        if node not in self._values:
            below = self._below[node]
            total = self._weights[below].sum()
            # weights that have vanished count nowhere: any finite mean does
            mean = self._weights[below] @ self._rewards[below] / total if total > 0 else self._rewards[below].mean()
            self._values[node] = float(mean)
        return self._values[node]


def sibling_advantages(
    completions: Sequence[Sequence[int]], rewards: Sequence[float | None], weights_K: np.ndarray
) -> list[list[float]]:
    """For every token K w_k (V(its node) - V(the node's parent)), V the weighted mean of the rewards below a node.

    Tokens that all completions share, or that all with the same beginning share, get 0. A completion's tokens sum to
    K w_k (r_k - sum_j w_j r_j), where no other completion has the same tokens.

    Args:
        completions: token ids of a group.
        rewards: of each; None for one that could not be scored, whose tokens get 0 and which counts nowhere.
        weights_K: of those that have a reward, with a sum of 1.
    """
    known = [place for place, reward in enumerate(rewards) if reward is not None]
    tree = _Tree([completions[i] for i in known], np.array([rewards[i] for i in known], np.float64), weights_K)
    found = [[0.0] * len(tokens) for tokens in completions]
    for place, path, weight in zip(known, tree.paths, weights_K.tolist(), strict=True):
        gains = itertools.starmap(tree.gain, itertools.pairwise(path))
        found[place] = [len(known) * weight * gain for gain in gains]
    return found
