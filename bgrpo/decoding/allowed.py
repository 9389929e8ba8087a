"""Completions that are allowed, where not every one is: a set of them as a tree, or a function that allows tokens.

Both are walked from node to node: a completion so far is a node, and the tokens that may follow are its edges. At each
place the allowed tokens share the whole probability: that is the policy's distribution for all purposes.

Shape letters: G prompts, N nodes, E edges, R rows, X any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bgrpo.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AllowTokens = Callable[[list[int], list[int]], Iterable[int]]
"""From the tokens of a prompt and of its completion so far to the ids that may follow."""

NOWHERE = -1
"""Node of what is not allowed."""

_ID = 1 << 31  # more than any token id


class Walk(Protocol):
    """Goes through what is allowed, on a device."""

    def roots(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Nodes of the empty completions, [G]."""
        ...

    def edges(self, nodes_R: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens may follow: pairs of a row and a token, ``rows_E`` and ``tokens_E``."""
        ...

    def follow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes after one more token, [X]; :data:`NOWHERE` where it is not allowed."""
        ...


class Allowed(Protocol):
    """What may be written."""

    def on(self, device: torch.device) -> Walk:
        """To be walked there."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AllowedCompletions:
    """A set of completions, as a tree.

    Attributes:
        tokens_E: of the edges, those of a node side by side and increasing; edge e leads to node e + 1.
        first_N: of each node its first edge, and at the end the number of edges.
        longest: tokens of the longest completion.
        count: how many there are.
    """

    tokens_E: np.ndarray
    first_N: np.ndarray
    longest: int
    count: int

    @classmethod
    def of(cls, completions: Iterable[Sequence[int]]) -> AllowedCompletions:
        """A tree of completions, each with its end token; what comes twice counts once.

        Raises:
            UserError: there is none, or one is the beginning of another.
        """
        ordered = sorted({tuple(tokens) for tokens in completions})
        if not ordered or not ordered[0]:
            raise UserError("allowed: holds no completion, or an empty one")
        tokens: list[int] = []
        first: list[int] = []
        spans = [(0, len(ordered), 0)]  # of each node, in order: the completions below it, and its depth
        for start, end, depth in spans:
            first.append(len(tokens))
            if start + 1 == end and len(ordered[start]) == depth:
                continue
            if len(ordered[start]) == depth:
                raise UserError(f"allowed: tokens {list(ordered[start])} are the beginning of another completion")
            while start < end:
                token = ordered[start][depth]
                after = start
                while after < end and ordered[after][depth] == token:
                    after += 1
                tokens.append(token)
                spans.append((start, after, depth + 1))
                start = after
        return cls(
            np.array(tokens, np.int64), np.array([*first, len(tokens)], np.int64), max(map(len, ordered)), len(ordered)
        )

    def on(self, device: torch.device) -> Walk:
        """See :class:`Allowed`."""
        return _TreeWalk(self, device)

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether a completion may begin so."""
        node = 0
        for token in tokens:
            start, end = int(self.first_N[node]), int(self.first_N[node + 1])
            edge = start + int(np.searchsorted(self.tokens_E[start:end], token))
            if edge == end or self.tokens_E[edge] != token:
                return False
            node = edge + 1
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AllowedCompletions):
            return NotImplemented
        return np.array_equal(self.tokens_E, other.tokens_E) and np.array_equal(self.first_N, other.first_N)

    def __hash__(self) -> int:
        return hash((self.count, self.longest, len(self.tokens_E)))


@dataclass(frozen=True, slots=True)
class AllowedByFunction:
    """What a function allows, asked once for each beginning.

    Attributes:
        function: see :data:`AllowTokens`; the same tokens must give the same answer.
        vocabulary: ids that the policy knows.
    """

    function: AllowTokens
    vocabulary: int

    def on(self, device: torch.device) -> Walk:
        """See :class:`Allowed`."""
        return _FunctionWalk(self, device)


class _TreeWalk:
    def __init__(self, tree: AllowedCompletions, device: torch.device) -> None:
        import torch

        self._tokens_E, self._first_N = (torch.from_numpy(of).to(device) for of in (tree.tokens_E, tree.first_N))
        owners = np.repeat(np.arange(len(tree.first_N) - 1), np.diff(tree.first_N))
        self._keys_E = torch.from_numpy(owners * _ID + tree.tokens_E).to(device)

    def roots(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See :class:`Walk`."""
        return self._first_N.new_zeros(len(prompts))

    def edges(self, nodes_R: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Walk`."""
        there_R = nodes_R.clamp(min=0)
        counts_R = (self._first_N[there_R + 1] - self._first_N[there_R]).masked_fill_(nodes_R < 0, 0)
        rows_E = counts_R.new_ones(len(nodes_R)).cumsum(0).sub_(1).repeat_interleave(counts_R)
        starts_R = self._first_N[there_R] - (counts_R.cumsum(0) - counts_R)
        places_E = rows_E.new_ones(len(rows_E)).cumsum(0).sub_(1) + starts_R[rows_E]
        return rows_E, self._tokens_E[places_E]

    def follow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """See :class:`Walk`."""
        import torch

        keys = nodes * _ID + tokens
        edges = torch.searchsorted(self._keys_E, keys).clamp_(max=len(self._keys_E) - 1)
        found = (self._keys_E[edges] == keys) & (nodes >= 0) & (tokens >= 0)
        return (edges + 1).where(found, NOWHERE)


@dataclass(slots=True)
class _FunctionWalk:
    """Nodes are numbered as they are met."""

    of: AllowedByFunction
    device: torch.device
    _written: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    _numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = field(default_factory=dict)
    _next: dict[int, list[int]] = field(default_factory=dict)

    def roots(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See :class:`Walk`."""
        return self._tensor([self._number(tuple(prompt), ()) for prompt in prompts])

    def edges(self, nodes_R: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Walk`."""
        allowed = [self._after(node) if node >= 0 else [] for node in nodes_R.tolist()]
        rows = [row for row, tokens in enumerate(allowed) for _ in tokens]
        return self._tensor(rows), self._tensor([token for tokens in allowed for token in tokens])

    def follow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """See :class:`Walk`."""
        pairs = zip(nodes.flatten().tolist(), tokens.flatten().tolist(), strict=True)
        return self._tensor([self._child(*pair) for pair in pairs]).view(nodes.shape)

    def _child(self, node: int, token: int) -> int:
        if node < 0 or token not in self._next.get(node, ()):
            return NOWHERE
        prompt, written = self._written[node]
        return self._number(prompt, (*written, token))

    def _number(self, prompt: tuple[int, ...], written: tuple[int, ...]) -> int:
        number = self._numbers.setdefault((prompt, written), len(self._written))
        if number == len(self._written):
            self._written.append((prompt, written))
        return number

    def _after(self, node: int) -> list[int]:
        if node not in self._next:
            prompt, written = self._written[node]
            tokens = sorted({int(token) for token in self.of.function(list(prompt), list(written))})
            if not tokens:
                raise UserError(f"allowed: the function allows nothing after tokens {list(written)}: expected some ids")
            if tokens[0] < 0 or tokens[-1] >= self.of.vocabulary:
                wrong = tokens[0] if tokens[0] < 0 else tokens[-1]
                raise UserError(f"allowed: the function gave token {wrong}; ids are 0 to {self.of.vocabulary - 1}")
            self._next[node] = tokens
        return self._next[node]

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        import torch

        return torch.tensor(numbers, dtype=torch.long, device=self.device)
