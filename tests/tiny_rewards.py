"""Tiny reward models with random weights, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(90)] + ["user", "assistant", ":"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


def tokenizer(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that adds its own special tokens: [CLS] … [SEP], or <s> …"""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if family == "bert" else ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "[CLS] $A [SEP]" if family == "bert" else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, number) for number, token in enumerate(special)]
    )
    names = ["cls_token", "sep_token"] if family == "bert" else ["bos_token", "eos_token"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        unk_token=special[1],
        **dict(zip(names, special[2:], strict=True)),
    )
    made.chat_template = template
    return made


def write_model(
    folder: Path,
    family: str = "bert",
    labels: int = 1,
    template: str | None = None,
    limit: int = 64,
    kind: str = "classifier",
    seed: int = 0,
) -> Path:
    """A tiny model of a family (``bert`` or ``llama``); ``kind``: classifier, or causal or encoder, without a head."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": limit,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    model: PreTrainedModel
    if family == "bert":
        config = BertConfig(**shape, num_labels=labels)
        model = BertModel(config) if kind == "encoder" else BertForSequenceClassification(config)
    else:
        llama = LlamaConfig(**shape, num_labels=labels, bos_token_id=2, eos_token_id=3)
        model = LlamaForCausalLM(llama) if kind == "causal" else LlamaForSequenceClassification(llama)
    model.save_pretrained(folder)
    tokenizer(family, template).save_pretrained(folder)
    return folder
