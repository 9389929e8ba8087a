"""The model and the prompts of a case, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)  # fmt: skip

from bgrpo.bench.rollouts.cases import SHAPES, Case, LanguageModelShape, ModelShape
from bgrpo.config import TrainConfig, load_config
from bgrpo.policies.io import load_policy
from bgrpo.policies.text import encode_texts
from bgrpo.tasks.base import generate_problems, load_task

PAD, EOS = 0, 1
WEIGHT_STD = {"wte": 0.12, "lm_head": 0.12, "wpe": 0.05, "embed_tokens": 0.12}
OTHER_WEIGHTS_STD = 0.02
"""Embeddings and head, which are not tied, larger than GPT-2's own 0.02: with that, next-token distributions are nearly
uniform and every beam is a near-tie, so that rounding decides which beams are found."""

"""Problems of the kind that the shipped policy was trained on."""

_SEED = 20
_NEVER = -1e4  # logit bias of an end token that must not come


@dataclass(frozen=True, slots=True)
class Workload:
    """What an engine is given."""

    model: PreTrainedModel  # fp32, in evaluation mode
    prompts: list[list[int]]  # G, token ids
    eos_token_id: int  # ends a completion where completions end
    pad_token_id: int  # fills shorter prompts of a batch


def build_workload(case: Case) -> Workload:
    """Model and prompts of a case, a function of the case alone.

    Where completions must not end, the head gets a bias of -10,000 at the end token: the same model for every engine,
    and no engine can choose that token among its K best.
    """
    if case.model == "shipped":
        policy = load_policy("shipped")
        model, tokenizer = policy.model, policy.tokenizer
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    else:
        model, eos, pad = random_model(SHAPES[case.model]), EOS, PAD
    if case.prompt_tokens is None:
        section = load_config(TrainConfig, "quickstart").task
        task = load_task(section.name, section.options)
        problems = generate_problems(task, section.test.options, case.prompts, _SEED)
        return Workload(model, encode_texts(tokenizer, [problem.prompt for problem in problems]), eos, pad)
    _forbid_token(model, eos)
    generator = torch.Generator().manual_seed(_SEED)
    shape = (case.prompts, case.prompt_tokens)
    prompts = torch.randint(2, model.config.vocab_size, shape, generator=generator).tolist()
    return Workload(model, prompts, eos, pad)


def random_model(shape: ModelShape | LanguageModelShape) -> PreTrainedModel:
    """A model whose next-token distributions are far from uniform and depend on the whole context."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: PreTrainedModel = _gpt2(shape) if isinstance(shape, ModelShape) else _language_model(shape)
        for name, parameter in model.eval().named_parameters():
            if parameter.ndim == 2 or name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                std = WEIGHT_STD.get(name.split(".")[-2], OTHER_WEIGHTS_STD)
                parameter.normal_(std=std, generator=generator)
    return model


def _language_model(shape: LanguageModelShape) -> PreTrainedModel:
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[shape.family]
    config = config_class(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        **shape.options,
    )
    return model_class(config)


def _gpt2(shape: ModelShape) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def _forbid_token(model: PreTrainedModel, token: int) -> None:
    """Give the head a bias that makes one token impossible; its weights stay, tied or not."""
    head = model.get_output_embeddings()
    biased = torch.nn.Linear(head.in_features, head.out_features, device="meta")
    biased.weight = head.weight
    biased.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        biased.bias[token] = _NEVER
    model.set_output_embeddings(biased)
