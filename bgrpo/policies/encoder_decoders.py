"""Models with an encoder: their vocabulary, their head, and what is checked before one is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bgrpo.errors import UserError


def cut_vocabulary(model: PreTrainedModel, tokens: int) -> None:
    """Leave the first ``tokens`` rows of the embeddings and of the head; what is tied stays tied, and nothing else.

    ``resize_token_embeddings`` of transformers would tie the head of a T5 whose head is its own.
    """
    rows = model.config.vocab_size
    stacks = [model, model.get_encoder(), model.get_decoder()]
    ends = [*(stack.get_input_embeddings() for stack in stacks), model.get_output_embeddings()]
    cut: dict[int, nn.Parameter] = {}  # by the identity of what was there
    for module in ends:
        for name, weight in list(module.named_parameters(recurse=False)):
            if len(weight) == rows:
                cut.setdefault(id(weight), nn.Parameter(weight.detach()[:tokens].clone()))
                setattr(module, name, cut[id(weight)])
        size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
        setattr(module, size, tokens)
    bias_1V = getattr(model, "final_logits_bias", None)  # BART's
    if isinstance(bias_1V, Tensor):
        model.register_buffer("final_logits_bias", bias_1V[:, :tokens].clone())
    model.config.vocab_size = tokens


def has_tied_head(model: PreTrainedModel) -> bool:
    """Whether head and embedding are one weight."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def untie_head(model: PreTrainedModel) -> None:
    """Give the head a weight of its own, of the values that it has."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


def check_logits(model: PreTrainedModel, tokens: int) -> None:
    """Refuse a model that does not compute what an encoder-decoder computes.

    Raises:
        UserError: its logits are not numbers, depend on tokens that come later, or on what fills up a prompt.
    """
    count = min(8, tokens, getattr(model.config, "max_position_embeddings", 8))
    ids, half = list(range(count)), max(1, count // 2)
    prompts_2L, answers_2L = torch.tensor([ids, ids]), torch.tensor([ids, [*ids[:-1], ids[0]]])
    mask_2L = torch.ones_like(prompts_2L)
    mask_2L[1, half:] = 0

    def logits(prompts: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
        found: Tensor = model(input_ids=prompts, attention_mask=mask, decoder_input_ids=answers, use_cache=False).logits
        return found

    with torch.inference_mode():
        first, later = logits(prompts_2L, torch.ones_like(mask_2L), answers_2L)
        filled = logits(prompts_2L, mask_2L, answers_2L[:1].expand(2, -1))[1]
        alone = logits(prompts_2L[:1, :half], mask_2L[:1, :half], answers_2L[:1])[0]
    if not first.isfinite().all():
        raise UserError("its logits are not numbers: a value in config.json is wrong, or weights are far too large")
    tolerance = 1e-3 * first.abs().max()
    if (changes := (first - later)[:-1].abs()).numel() and changes.max() > tolerance:
        raise UserError("its logits depend on tokens that come later: its decoder is no causal language model")
    if (filled - alone).abs().max() > tolerance:
        raise UserError("its logits depend on what fills up a prompt: such encoder-decoders cannot be decoded exactly")
