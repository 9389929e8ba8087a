"""Random encoder-decoders of every type that is loaded, small enough for brute force, and their exact results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from reference.beam_oracle import NextLogprobs
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from bgrpo.groups import passages_of
from bgrpo.policies.encoder_decoders import untie_head

EOS = 1
_LIKE_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_LIKE_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), _LIKE_T5),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "plbart", "mvp"), _LIKE_BART),
    **dict.fromkeys(("blenderbot", "blenderbot-small"), _LIKE_BART),
    "t5 untied": {**_LIKE_T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
}
"""One of each type, and a T5 1.1, whose head is its own."""


def tiny_encoder_decoder(kind: str = "t5", vocabulary: int = 11, seed: int = 1, **options: Any) -> PreTrainedModel:
    """Two layers in encoder and decoder; its distributions are far from uniform and depend on the whole prompt."""
    config = AutoConfig.for_model(
        kind.removesuffix(" untied"), vocab_size=vocabulary, pad_token_id=0, eos_token_id=EOS, bos_token_id=2,
        **ENCODER_DECODERS[kind], **options,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config)
        if kind.endswith("untied"):
            untie_head(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.5 if "shared" in name or "relative" in name else 0.2)
    return model.eval()


def exact_states(model: PreTrainedModel, prompt: Sequence[int]) -> torch.Tensor:
    """The encoder's states of a prompt [1, P, E], each passage read alone, nothing filled up."""
    passages = [torch.tensor([passage]) for passage in passages_of(prompt)]
    return torch.cat([model.get_encoder()(input_ids=ids)[0] for ids in passages], 1)


def exact_logprobs(model: PreTrainedModel, prompt: Sequence[int]) -> NextLogprobs:
    """In float64, by a pass of the decoder over the whole completion so far, remembered."""
    exact: Any = copy.deepcopy(model).double().eval()
    memory: dict[tuple[int, ...], list[float]] = {}
    with torch.no_grad():
        states = exact_states(exact, prompt)

    def after(completion: tuple[int, ...]) -> list[float]:
        if completion not in memory:
            ids = torch.tensor([[0, *completion]])
            with torch.no_grad():
                logits = exact(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=False).logits[0, -1]
            memory[completion] = logits.log_softmax(-1).tolist()
        return memory[completion]

    return after
