"""Log-probabilities of whole groups by an encoder-decoder: one encoder pass per prompt, one decoder row per completion.

The encoder's states of a prompt are shared by the rows of its group, so its gradient comes from all of them at once.
Decoder rows are filled up on the right; no token of theirs sees what comes after it.

Shape letters: G groups, P places of a prompt, E width of the encoder's states, B completions, C longest completion, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bgrpo.decoding.encoding import decoder_options, encode, start_token
from bgrpo.learning.forward_pass import ChosenTokens, Scoring

Groups = Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
"""(prompt, completions) each, as token ids."""


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """See :class:`bgrpo.learning.padded_rows.LaidOutGroups`.

    Attributes:
        prompts: of the groups, see :func:`bgrpo.groups.passages_of`.
        group_B: the group of each completion; only rows that hold one.
        source_BC: of the place that predicts this token, among the places of all decoder rows, row by row.
        tokens_BC: completion tokens padded on the right.
        mask_BC: True at completion tokens.
    """

    prompts: tuple[Sequence[int], ...]
    group_B: Tensor
    source_BC: Tensor
    tokens_BC: Tensor
    mask_BC: Tensor

    def logps(self, model: nn.Module, scoring: Scoring | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`bgrpo.learning.packing.packed_logps`; the results are those of separate rows."""
        own: Any = getattr(model, "module", model)
        rows, width = len(self.group_B), self.tokens_BC.shape[1]
        start_B1 = self.tokens_BC.new_full((rows, 1), start_token(own))
        ids_BC = torch.cat((start_B1, self.tokens_BC[:rows, :-1]), 1)

        def run() -> Tensor:
            states_GPE, mask_GP = encode(own, self.prompts)
            options = decoder_options(own, states_GPE[self.group_B], mask_GP[self.group_B])
            logits_BCV: Tensor = model(decoder_input_ids=ids_BC, use_cache=False, **options).logits
            return logits_BCV

        chosen = ChosenTokens(self.source_BC, self.tokens_BC, self.mask_BC)
        return (scoring or Scoring()).logps(
            model, run, lambda logits_BCV: logits_BCV.flatten(0, 1), rows * width, chosen
        )


def pad_answers(groups: Groups, device: torch.device | str, rows: int = 0) -> AnswerRows:
    """Lay out groups, none of them empty, one decoder row per completion.

    Args:
        groups: token ids.
        device: where the tensors go.
        rows: least number of completion rows; those beyond the completions are masked out and cost nothing.
    """
    completions = [completion for _, of_group in groups for completion in of_group]
    width = max(2, *(len(completion) for completion in completions))  # TRL takes one column for one value per row
    tokens_BC = torch.zeros(max(len(completions), rows), width, dtype=torch.long)
    mask_BC = torch.zeros(tokens_BC.shape, dtype=torch.bool)
    for row, completion in enumerate(completions):
        tokens_BC[row, : len(completion)] = torch.tensor(completion)
        mask_BC[row, : len(completion)] = True
    source_BC = torch.arange(tokens_BC.numel()).view_as(tokens_BC).masked_fill(~mask_BC, 0)
    group_B = torch.tensor([g for g, (_, of_group) in enumerate(groups) for _ in of_group])
    moved = (tensor.to(device) for tensor in (group_B, source_BC, tokens_BC, mask_BC))
    return AnswerRows(tuple(prompt for prompt, _ in groups), *moved)
