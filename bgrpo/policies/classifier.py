"""Sequence classifiers from folders that may hold anything, with the checks that policies have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from bgrpo.errors import UserError
from bgrpo.policies.model_files import (
    ModelFiles,
    empty_model,
    model_config,
    names_in_model,
    read_model_files,
    read_tokenizer,
    shortened,
    special_ids,
)

_ASK_FOR_KERNELS = {"mra", "yoso"}  # of the Hub, where there is a GPU
_HEAD_KEYS = ("id2label", "label2id", "num_labels", "problem_type")
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
_ONE_OUTPUT = {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": None}


class Classifier(NamedTuple):
    """A classifier in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def read_classifier(folder: Path, dtype: torch.dtype) -> Classifier:
    """A classifier with every weight that it needs, and no others.

    Raises:
        UserError: anything that :mod:`bgrpo.policies.model_files` refuses; weights that are missing (transformers would
            draw a head at random) or too many; outputs that are not numbers.
    """
    files = _files(folder)
    labels = files.config.get("id2label") or {}
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise UserError(f"config.json says id2label={shortened(labels)}: expected a name for each of 0, 1, …")
    problem = files.config.get("problem_type")
    if problem not in _PROBLEMS:
        raise UserError(f"config.json says problem_type={shortened(problem)}: expected one of {_PROBLEMS}")
    config, tokenizer = _config_and_tokenizer(files)
    model, missing, unexpected = _build(files, config, dtype)
    if missing:
        raise UserError(
            f"has no trained classification head: the file lacks {len(missing)} weights, first "
            f"{shortened(missing[0])}; a reward model is made by bgrpo reward-model --train"
        )
    if unexpected:
        raise UserError(
            f"a checkpoint of another shape: the file has, beyond config.json, {len(unexpected)} weights, first "
            f"{shortened(unexpected[0])}"
        )
    _try(model, tokenizer)
    return Classifier(model, tokenizer)


def read_base(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Classifier:
    """An encoder or decoder with a head of one output, drawn from the seed where the folder has none.

    Raises:
        UserError: as :func:`read_classifier`, for weights that are no head.
    """
    files = _files(folder)
    files.config.update(_ONE_OUTPUT)
    config, tokenizer = _config_and_tokenizer(files)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing, unexpected = _build(files, config, dtype)
    prefix = f"{model.base_model_prefix}."
    body = {prefix + name for name, _ in model.base_model.named_children()}
    for problem, names in (("lacks", missing), ("has, beyond config.json,", unexpected)):
        whole = (name if name.startswith(prefix) else prefix + name for name in names)
        inside = [name for name in whole if ".".join(name.split(".")[: prefix.count(".") + 1]) in body]
        lost = [name for name in inside if ".pooler." not in name]  # many encoders are saved without one, or with
        if lost:
            raise UserError(
                f"a checkpoint of another shape: the file {problem} {len(lost)} weights that are no head, first "
                f"{shortened(lost[0])}"
            )
    _try(model, tokenizer)
    return Classifier(model, tokenizer)


def _files(folder: Path) -> ModelFiles:
    files = read_model_files(folder)
    if files.config.get("auto_map"):
        raise UserError("config.json has auto_map: code that comes with a model is never run; give a model without")
    return files


def _config_and_tokenizer(files: ModelFiles) -> tuple[PretrainedConfig, PreTrainedTokenizerFast]:
    model_type = str(files.config.get("model_type"))
    kinds = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.keys() - _ASK_FOR_KERNELS
    if model_type in kinds and "vision_config" in CONFIG_MAPPING[model_type].sub_configs:
        raise UserError(f"model_type {shortened(model_type)} cannot be loaded: it reads images; give its text model")
    config = model_config(files, kinds, _HEAD_KEYS)
    tokenizer = read_tokenizer(files.folder, config)
    special_ids({"config.json": files.config}, "pad_token_id", config.get_text_config().vocab_size)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # told by a score
    return config, tokenizer


def _build(
    files: ModelFiles, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """The model, and the names of weights that the files lack, and have beyond it."""
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    names_in_model(empty_model(files, kind, config), files)
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=files.weights(),
        dtype=dtype,
        attn_implementation="sdpa" if kind._supports_sdpa else "eager",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model.config.name_or_path = str(files.folder)
    other = sorted(info["mismatched_keys"])
    if other:
        raise UserError(
            f"a checkpoint of another shape: {len(other)} weights differ from config.json, first "
            f"{shortened(other[0][0])}"
        )
    return model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def _try(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Score a short text.

    Raises:
        UserError: the outputs are not numbers, or not as many as the labels.
    """
    ids = tokenizer("a b")["input_ids"] or [0]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        logits = model(input_ids=torch.tensor([ids])).logits
    if tuple(logits.shape) != (1, model.config.num_labels):
        raise UserError(f"gives outputs of the shape {tuple(logits.shape)} for one text, expected one for each label")
    if not logits.isfinite().all():
        raise UserError("its outputs are not numbers: a value in config.json is wrong, or weights are far too large")
