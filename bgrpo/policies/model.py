"""A new policy from its dimensions: a GPT-2-shaped causal language model, or a T5."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from bgrpo.errors import UserError


def build_policy(
    tokenizer: PreTrainedTokenizerBase,
    layers: int,
    heads: int,
    width: int,
    context: int,
    seed: int,
    initial_deviation: float = 0.02,
) -> GPT2LMHeadModel:
    """A policy with random weights, the same for the same arguments; the global random state is left alone.

    Args:
        tokenizer: gives the vocabulary size and the ids of the end and pad tokens.
        layers: transformer blocks.
        heads: attention heads per block; ``width`` must be a multiple.
        width: of the residual stream; the MLP is four times as wide.
        context: longest prompt plus completion, in tokens.
        seed: of the initial weights.
        initial_deviation: their standard deviation.
    """
    if width % heads:
        raise UserError(f"width={width} is not a multiple of heads={heads}")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=initial_deviation,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GPT2LMHeadModel(config)


def build_encoder_decoder(
    tokenizer: PreTrainedTokenizerBase, layers: int, heads: int, width: int, seed: int
) -> T5ForConditionalGeneration:
    """A T5 with random weights and without dropout, the same for the same arguments; the global random state is left
    alone. It reads and writes texts of any length.

    Args:
        tokenizer: gives the vocabulary size and the ids of the end token and of the pad, which starts its decoder.
        layers: blocks of the encoder, and of the decoder.
        heads: attention heads per block; ``width`` must be a multiple.
        width: of the residual stream; the MLP is four times as wide.
        seed: of the weights.
    """
    if width % heads:
        raise UserError(f"width={width} is not a multiple of heads={heads}")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    if model.generation_config is not None:
        model.generation_config.decoder_start_token_id = tokenizer.pad_token_id
    return model
