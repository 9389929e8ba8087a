"""Log-probabilities of whole groups by the model's own forward pass over one row per completion: the plain path.

Each row is a prompt and its completion, filled up on the right. No token of theirs sees what comes after it, so the
fillers need no mask, and the model's own positions are right, whatever its attention or its state is.

Shape letters: B completions of all groups, L longest row, C longest completion, S scored places, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bgrpo.decoding.support import Service
from bgrpo.learning.encoder_groups import Groups, pad_answers
from bgrpo.learning.forward_pass import ChosenTokens, Scoring
from bgrpo.learning.packed_answers import pack_answers
from bgrpo.learning.packing import pack_groups


class LaidOutGroups(Protocol):
    """Groups ready for forward passes: packed for the tree, or padded for the plain path.

    Attributes:
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    @property
    def tokens_BC(self) -> Tensor: ...

    @property
    def mask_BC(self) -> Tensor: ...

    def logps(self, model: nn.Module, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`bgrpo.learning.packing.packed_logps`."""
        ...


class LayOut(Protocol):
    """:func:`bgrpo.learning.packing.pack_groups` or :func:`pad_groups`; with an encoder
    :func:`bgrpo.learning.packed_answers.pack_answers` or :func:`bgrpo.learning.encoder_groups.pad_answers`."""

    def __call__(self, groups: Groups, device: torch.device | str, rows: int = 0) -> LaidOutGroups: ...


@dataclass(frozen=True, slots=True)
class PaddedGroups:
    """See :class:`LaidOutGroups`.

    Attributes:
        ids_BL: prompts and completions, filled up on the right; only rows that hold a completion.
        first: place of the first row whose logits are read.
        source_BC: of the place that predicts this token, among all places from ``first`` on, row by row.
    """

    ids_BL: Tensor
    first: int
    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor

    def logps(self, model: nn.Module, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`bgrpo.learning.packing.packed_logps`; the results are the same."""
        takes = inspect.signature(getattr(model, "module", model).forward).parameters.keys()
        kept = self.ids_BL.shape[1] - self.first
        options: dict[str, Any] = {"logits_to_keep": kept, "attention_mask": torch.ones_like(self.ids_BL)}
        options = {name: value for name, value in options.items() if name in takes}

        def run() -> Tensor:
            logits_BLV: Tensor = model(input_ids=self.ids_BL, use_cache=False, **options).logits
            return logits_BLV

        chosen = ChosenTokens(self.source_BC, self.tokens_BC, self.mask_BC)
        return (scoring or Scoring()).logps(
            model, run, lambda logits_BLV: logits_BLV[:, -kept:].flatten(0, 1), len(self.ids_BL) * kept, chosen
        )


def lay_out_of(service: Service) -> LayOut:
    """How a model's groups are laid out for its forward passes."""
    if service.encoder:
        return pack_answers if service.engine == "tree" else pad_answers
    return pack_groups if service.engine == "tree" else pad_groups


def pad_groups(groups: Groups, device: torch.device | str, rows: int = 0) -> PaddedGroups:
    """Lay out groups, none of them empty, one row per completion.

    Args:
        groups: token ids.
        device: where the tensors go.
        rows: least number of completion rows B; those beyond the completions are masked out and cost nothing.
    """
    pairs = [(prompt, completion) for prompt, completions in groups for completion in completions]
    first = min(len(prompt) for prompt, _ in pairs) - 1
    longest = max(len(prompt) + len(completion) for prompt, completion in pairs) - 1  # the last token predicts nothing
    width = max(2, *(len(completion) for _, completion in pairs))  # TRL takes one column for one value per row
    ids_BL = torch.zeros(len(pairs), longest, dtype=torch.long)
    source_BC, tokens_BC = (torch.zeros(max(len(pairs), rows), width, dtype=torch.long) for _ in range(2))
    mask_BC = torch.zeros(source_BC.shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(pairs):
        ids = [*prompt, *completion][:-1]
        ids_BL[row] = torch.tensor(ids + ids[:1] * (longest - len(ids)))
        start = row * (longest - first) + len(prompt) - 1 - first
        source_BC[row, : len(completion)] = torch.arange(start, start + len(completion))
        tokens_BC[row, : len(completion)] = torch.tensor(completion)
        mask_BC[row, : len(completion)] = True
    moved = (tensor.to(device) for tensor in (source_BC, tokens_BC, mask_BC))
    return PaddedGroups(ids_BL.to(device), first, *moved)
