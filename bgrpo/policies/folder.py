"""The folder of a policy: a language model, causal or with an encoder, and every end token that its files name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bgrpo.errors import UserError
from bgrpo.policies.model_files import (
    ModelFiles,
    empty_model,
    model_config,
    names_in_model,
    read_json,
    read_model_files,
    read_tokenizer,
    shortened,
    special_ids,
    weights_in_files,
)

_ENCODER_DECODER_KEYS = ("decoder_start_token_id", "scale_decoder_outputs")  # not among T5's own
ENCODER_DECODER_TYPES = (
    *("bart", "blenderbot", "blenderbot-small", "longt5", "marian", "mbart", "mt5", "mvp", "pegasus", "plbart", "t5"),
    "umt5",
)
"""Those that compute the same whatever the batch, and that take the states of an encoder. Others have experts with a
share of the batch's tokens, blocks at random, windows, positions that skip pads, two vocabularies, or read more than
text."""


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """The checked content of a folder.

    Attributes:
        config: of the model, only with the keys that describe it.
        tokenizer: what ``tokenizer.json`` says, with the special tokens of the files beside it.
        end_tokens: what any file names as end of a text, the tokenizer's own first.
        start_token: what the decoder of an encoder-decoder begins with; None for other models.
        names: of the weights in the files, and in the model.
        files: that hold them.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast
    end_tokens: tuple[int, ...]
    start_token: int | None
    names: dict[str, str]
    files: ModelFiles

    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight, in fp32, under the model's name for it.

        Raises:
            UserError: a weight holds something else than numbers.
        """
        return {self.names[name]: tensor for name, tensor in self.files.weights().items()}


def read_folder(folder: Path, texts: Path | None = None) -> PolicyFolder:
    """Read and check a folder in Hugging Face format; weights are only listed.

    Args:
        folder: of the model.
        texts: with another tokenizer and further end tokens for it; default: the same.

    Raises:
        UserError: a file is missing, too large, damaged, or says something that is not supported.
    """
    files = read_model_files(folder)
    texts = texts or folder
    generation = read_json(texts, "generation_config.json")
    kinds = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    config = model_config(files, kinds, _ENCODER_DECODER_KEYS)
    if config.is_encoder_decoder and config.model_type not in ENCODER_DECODER_TYPES:
        known = ", ".join(ENCODER_DECODER_TYPES)
        raise UserError(f"model_type {config.model_type!r} cannot be loaded: of encoder-decoders, {known} can")
    if config.get_text_config() is not config:
        raise UserError(f"model_type {config.model_type!r} reads more than text: language models of text can be loaded")
    names = _every_name(config, files)
    tokenizer = read_tokenizer(texts, config)
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:  # padding is always masked, so its id carries no meaning
        tokenizer.pad_token = tokenizer.eos_token
    longest = getattr(config, "max_position_embeddings", VERY_LARGE_INTEGER)
    if tokenizer.model_max_length < longest:  # transformers warns of longer texts
        tokenizer.model_max_length = VERY_LARGE_INTEGER
    said = {"config.json": files.config, "generation_config.json": generation}
    ends, bos, _, starts = (
        special_ids(said, f"{kind}_token_id", len(tokenizer)) for kind in ("eos", "bos", "pad", "decoder_start")
    )
    ends = tuple(dict.fromkeys((tokenizer.eos_token_id, *ends)))
    config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    config.bos_token_id = bos[0] if bos else tokenizer.bos_token_id
    start = None
    if config.is_encoder_decoder:
        if not starts:
            raise UserError("config.json names no decoder_start_token_id, which an encoder-decoder starts from")
        start = config.decoder_start_token_id = starts[0]
    return PolicyFolder(config, tokenizer, ends, start, names, files)


def model_class(config: PretrainedConfig) -> Any:
    """The language model of transformers that a configuration describes."""
    if config.is_encoder_decoder:
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _every_name(config: PretrainedConfig, files: ModelFiles) -> dict[str, str]:
    """For each weight of the files its name in the model, which has exactly these weights, in these shapes."""
    model = empty_model(files, model_class(config), config)
    weights = weights_in_files(model, files)
    names = names_in_model(model, files, weights)
    expected = weights.keys()
    tied = {*(model._tied_weights_keys or ()), *model.all_tied_weights_keys} if config.tie_word_embeddings else set()
    unknown = sorted(name for name, inside in names.items() if inside not in expected)
    lacking = sorted(expected - set(names.values()) - tied)
    for problem, found in (("lacks", lacking), ("has, beyond config.json,", unknown)):
        if found:
            raise UserError(
                f"a checkpoint of another shape: the file {problem} {len(found)} weights, first {shortened(found[0])}"
            )
    return names
