"""Loading and saving policies: safetensors only, no code from checkpoints, complete or absent."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bgrpo.errors import UserError, one_line, reading
from bgrpo.files import atomic_path
from bgrpo.policies import encoder_decoders
from bgrpo.policies.adapter import Adapter, adapter_of, merged
from bgrpo.policies.adapter_files import is_adapter, read_adapter, write_adapter
from bgrpo.policies.flat_weights import flatten_parameters, load_flat_parameters
from bgrpo.policies.folder import PolicyFolder, model_class, read_folder
from bgrpo.policies.source import SHIPPED_POLICY, find_policy, is_policy
from bgrpo.policies.text import set_end_tokens, set_has_encoder
from bgrpo.waits import waiting

__all__ = [
    "SHIPPED_POLICY",
    "LoadedPolicy",
    "check_target",
    "disable_dropout",
    "empty_copy",
    "flatten_parameters",
    "load_flat_parameters",
    "load_policy",
    "loading",
    "save_policy",
    "write_policy",
]


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to decode or to train on.

    Attributes:
        model: in evaluation mode, every dropout at 0. Its vocabulary is the tokenizer's: rows that pad the embedding
            of a checkpoint beyond that are cut off, so no id without a text can be generated or learned.
        tokenizer: with a pad token, and with every end token that the folder names, see
            :func:`bgrpo.policies.text.end_tokens`.
        path: where it came from, as given; load it again from here.
        adapter: what was merged into it, where it came from the folder of an adapter.
        before: the model without the adapter; None without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    adapter: Adapter | None = None
    before: PreTrainedModel | None = None

    @property
    def base(self) -> PreTrainedModel:
        """The model without adapter."""
        return self.model if self.before is None else self.before


def load_policy(path: str, device: str | torch.device = "cpu") -> LoadedPolicy:
    """Load a language model, causal or with an encoder, in fp32, with its tokenizer.

    Args:
        path: ``shipped``, a directory in Hugging Face format, or a model id of the Hugging Face Hub; or the folder of
            a LoRA adapter in peft's format, whose base model is here.
        device: where the weights go.

    Raises:
        UserError: nothing there, or anything that ``bgrpo.policies.folder.read_folder`` or
            ``bgrpo.policies.adapter_files.read_adapter`` refuses; weights, or logits of a short text, that are not
            finite.
    """
    with loading("policy", path) as folder:
        adapter, texts = None, folder
        if is_adapter(folder):
            folder, adapter = read_adapter(texts)
        found = read_folder(folder, texts if (texts / "tokenizer.json").exists() else None)
        model = _build(found)
        model.config.name_or_path = str(folder)
        set_end_tokens(found.tokenizer, found.end_tokens)
        set_has_encoder(found.tokenizer, found.config.is_encoder_decoder)
        model = model.to(device)
        if adapter is None:
            return LoadedPolicy(model, found.tokenizer, path)
        if found.config.is_encoder_decoder:
            raise UserError("is an adapter of an encoder-decoder; adapters of decoder-only models can be loaded")
        with_adapter = merged(model, adapter)
        _check_logits(with_adapter, len(found.tokenizer))
        return LoadedPolicy(with_adapter, found.tokenizer, path, adapter, model)


@contextlib.contextmanager
def loading(what: str, path: str) -> Iterator[Path]:
    """The folder of a model, for a block that reads it; whatever it holds, what goes wrong is one line.

    Args:
        what: the kind of model, for messages.
        path: ``shipped``, a directory in Hugging Face format, or a model id of the Hugging Face Hub.

    Raises:
        UserError: there is no such model, or the block raised anything; the message begins with kind and path.
    """
    told = waiting(f"{what} {one_line(path)} to be loaded")
    with told, reading(f"{what} {one_line(path)}: cannot be loaded"), _quiet_transformers():
        folder = find_policy(path, what)
        try:
            yield folder
        except UserError as error:
            raise UserError(f"{what} {one_line(path)}: {error}") from error


def _build(found: PolicyFolder) -> Any:
    """The model of a folder, in evaluation mode.

    Raises:
        UserError: it computes something else than numbers.
    """
    disable_dropout(found.config)
    model = model_class(found.config).from_pretrained(
        None, config=found.config, state_dict=found.weights(), dtype=torch.float32, attn_implementation=None
    )
    model.generation_config.pad_token_id = found.tokenizer.pad_token_id
    tokens = len(found.tokenizer)
    if found.start_token is not None:
        model.generation_config.decoder_start_token_id = found.start_token
        if tokens < model.config.vocab_size:
            encoder_decoders.cut_vocabulary(model, tokens)
        model.eval()
        encoder_decoders.check_logits(model, tokens)
        return model
    if tokens < model.config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(tokens, mean_resizing=False)
    model.eval()
    _check_logits(model, tokens)
    return model


def _check_logits(model: Any, tokens: int) -> None:
    """Refuse a model whose logits are not numbers, or depend on tokens that come later."""
    ids_1L = torch.arange(tokens)[None, : min(8, getattr(model.config, "max_position_embeddings", 8))]
    with torch.inference_mode():
        logits, of_others = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            for ids in (ids_1L, torch.cat((ids_1L[:, :-1], ids_1L[:, :1]), 1))
        )
    if not logits.isfinite().all():
        raise UserError("its logits are not numbers: a value in config.json is wrong, or weights are far too large")
    changes = (logits - of_others)[:-1].abs()
    if changes.numel() and changes.max() > 1e-3 * logits.abs().max():
        raise UserError("its logits depend on tokens that come later: it is no causal language model")


def empty_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration in fp32, whose weights are still to be loaded; tied are those of ``model``."""
    empty: PreTrainedModel = model_class(model.config)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
    if model.config.is_encoder_decoder and not encoder_decoders.has_tied_head(model):
        encoder_decoders.untie_head(empty)
    return empty


def disable_dropout(config: PretrainedConfig) -> None:
    """Set every dropout probability of a configuration to 0; reinforcement learning needs the same policy each pass."""
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    card: str | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Write a policy so that :func:`load_policy` and the Hugging Face Hub's loader read it: complete or absent.

    Everything goes to a temporary directory beside ``directory``, is flushed to the disk, and is renamed into place; an
    existing ``directory`` stays until the new one is complete.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        directory: target; parents are made.
        card: model card, written as README.md.
        adapter: write this adapter of the model, in place of the model's weights.

    Raises:
        UserError: the disk is full or not writable (nothing is left behind and the old directory is intact), or
            ``directory`` exists and holds something other than a policy.
    """
    check_target(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(directory) as new:
            new.mkdir()
            write_policy(model, tokenizer, new, adapter)
            if card is not None:
                (new / "README.md").write_text(card, "utf-8")
    except OSError as error:
        raise UserError(f"policy {directory}: cannot be written: {one_line(str(error))}") from error


def check_target(directory: Path) -> None:
    """Refuse to replace anything but a policy or an empty directory.

    Raises:
        UserError: ``directory`` exists and holds something else.
    """
    if directory.exists() and not is_policy(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"policy {directory}: exists and is not a policy; give another directory, or remove it")


def write_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, adapter: Adapter | None = None
) -> None:
    """Write the files of a policy into an existing directory, for callers that see to atomicity themselves.

    Args:
        model: the policy; of one that learns an adapter (:func:`bgrpo.policies.lora.attach`), that is written.
        tokenizer: of the policy.
        directory: to be filled.
        adapter: write this adapter of the model, in place of the model's weights.

    Raises:
        OSError: the disk is full or not writable.
    """
    adapter = adapter or adapter_of(model)
    with _quiet_transformers():
        try:
            if adapter is None:
                model.save_pretrained(directory)
            else:
                write_adapter(adapter, model, directory)
                model.generation_config.save_pretrained(directory)
        except SafetensorError as error:
            raise OSError(f"{directory}: weights: {error}") from error
        tokenizer.save_pretrained(directory)
    for file in filter(Path.is_file, directory.iterdir()):
        file.chmod(0o644)  # safetensors writes files that only their owner may read


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No load reports and repetitions told: what they say is raised as an error or is not the user's business."""
    hub_verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_verbosity)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
