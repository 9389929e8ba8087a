"""Models with an encoder: what the decoder starts from, how passages are read and fused, and what is checked first.

Each passage of a prompt goes through the encoder alone. The decoder's cross-attention reads the states of all of them,
one behind the other (Fusion-in-Decoder, Izacard and Grave 2021); a prompt of one passage is the usual case.

Shape letters: G prompts, P places of a prompt (all its passages), E width of the encoder's states.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.groups import passages_of

_TOKENS_AT_ONCE = 4096  # of the encoder's pass; bounds the memory of activations


def start_token(model: PreTrainedModel) -> int:
    """The token that the decoder begins with; see :func:`bgrpo.policies.io.load_policy`, which sets it."""
    found = getattr(model.config, "decoder_start_token_id", None)
    if not isinstance(found, int):
        found = model.generation_config.decoder_start_token_id if model.generation_config is not None else None
    if not isinstance(found, int):
        raise UserError("the model names no token that its decoder starts with: set decoder_start_token_id")
    return found


def encode(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The encoder's states of every prompt, each passage read once; differentiable where gradients are on.

    Args:
        model: an encoder-decoder.
        prompts: token ids, see :func:`bgrpo.groups.passages_of`; no passage is empty.

    Returns:
        ``states_GPE``, zero where a prompt has fewer places than others, and ``mask_GP``, int64, 1 at its places.
    """
    passages = [passages_of(prompt) for prompt in prompts]
    places = sorted((len(ids), g, n) for g, of_prompt in enumerate(passages) for n, ids in enumerate(of_prompt))
    found: dict[tuple[int, int], Tensor] = {}
    for batch in _batches(places):
        longest = batch[-1][0]
        rows = [passages[g][n] for _, g, n in batch]
        ids_NL = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in rows], device=model.device)
        mask_NL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=model.device)
        states_NLE = model.get_encoder()(input_ids=ids_NL, attention_mask=mask_NL)[0]
        found |= {(g, n): states_NLE[row, :length] for row, (length, g, n) in enumerate(batch)}
    states = [torch.cat([found[g, n] for n in range(len(of_prompt))]) for g, of_prompt in enumerate(passages)]
    mask_GP = pad_sequence([torch.ones(len(each), dtype=torch.long, device=model.device) for each in states], True)
    return pad_sequence(states, True), mask_GP


def _batches(places: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Passages, given from the shortest on, a few tokens at a time."""
    batches: list[list[tuple[int, int, int]]] = [[]]
    for place in places:
        if batches[-1] and (len(batches[-1]) + 1) * place[0] > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(place)
    return batches


def decoder_options(model: nn.Module, states_RPE: Tensor, mask_RP: Tensor) -> dict[str, Any]:
    """What a model's forward pass takes for prompts that :func:`encode` has read, one per row."""
    takes = inspect.signature(model.forward).parameters.keys()
    options: dict[str, Any] = {"encoder_outputs": (states_RPE,), "attention_mask": mask_RP}
    return {name: value for name, value in options.items() if name in takes}


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
        UserError: its logits are not numbers, depend on tokens that come later, do not depend on the prompt, or on what
            fills up a prompt.
    """
    count = min(8, tokens, getattr(model.config, "max_position_embeddings", 8))
    ids = list(range(count))
    answers_2L = torch.tensor([ids, [*ids[:-1], ids[0]]])
    with torch.inference_mode():
        states_2PE, mask_2P = encode(model, [ids, ids[: max(1, count // 2)]])
        alone_1PE, alone_1P = encode(model, [ids[: max(1, count // 2)]])

        def logits(states: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
            options = decoder_options(model, states, mask)
            found: Tensor = model(decoder_input_ids=answers, use_cache=False, **options).logits
            return found

        first, later = logits(states_2PE[:1].expand(2, -1, -1), mask_2P[:1].expand(2, -1), answers_2L)
        filled, lonely = (
            logits(states, mask, answers_2L[:1])[0]
            for states, mask in ((states_2PE[1:], mask_2P[1:]), (alone_1PE, alone_1P))
        )
    if not first.isfinite().all():
        raise UserError("its logits are not numbers: a value in config.json is wrong, or weights are far too large")
    tolerance = 1e-3 * first.abs().max()
    if (changes := (first - later)[:-1].abs()).numel() and changes.max() > tolerance:
        raise UserError("its logits depend on tokens that come later: its decoder is no causal language model")
    if (filled - lonely).abs().max() > tolerance:
        raise UserError("its logits depend on what fills up a prompt: such encoder-decoders cannot be decoded exactly")
