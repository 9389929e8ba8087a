"""A tiny T5 in a folder, with a tokenizer that ends every text with </s>, as T5's does."""

from __future__ import annotations

from pathlib import Path

from decoding.tiny_encoder_decoders import tiny_encoder_decoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(28)]


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level: <pad>, </s>, <unk>, w0 …"""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def write_t5(folder: Path, kind: str = "t5", further_rows: int = 5, seed: int = 3) -> PreTrainedModel:
    """Write a policy whose embedding has more rows than its tokenizer has tokens; the model that was written."""
    tokenizer = t5_tokenizer()
    model = tiny_encoder_decoder(kind, len(tokenizer) + further_rows, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
