"""Loading and saving policies: safetensors only, no code from checkpoints, complete or absent."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bgrpo.errors import UserError
from bgrpo.files import atomic_path
from bgrpo.policies.flat_weights import flatten_parameters, load_flat_parameters

__all__ = [
    "LoadedPolicy",
    "check_target",
    "disable_dropout",
    "flatten_parameters",
    "load_flat_parameters",
    "load_policy",
    "save_policy",
    "write_policy",
]

SHIPPED_POLICY = Path(__file__).resolve().parents[1] / "assets" / "policy"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to decode or to train on.

    Attributes:
        model: in evaluation mode, every dropout at 0.
        tokenizer: with an end token and a pad token.
        path: where it came from, as given; load it again from here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str


def load_policy(path: str, device: str | torch.device = "cpu") -> LoadedPolicy:
    """Load a causal language model, in fp32, with its tokenizer.

    Args:
        path: ``shipped``, a directory in Hugging Face format, or a model id of the Hugging Face Hub.
        device: where the weights go.

    Raises:
        UserError: nothing there, a half-written file, weights of another shape than the configuration says, weights
            that are not safetensors, a model that is not a causal language model, or one that needs its own code.
    """
    source = str(SHIPPED_POLICY) if path == "shipped" else path
    _check_source(path, Path(source))
    with _quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            disable_dropout(config)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are listed in info
                output_loading_info=True,
            )
        except _LOAD_ERRORS as error:
            raise UserError(f"policy {path}: cannot be loaded: {_first_sentence(error)}") from error
    model, info = loaded
    _check_weights(path, info)
    _check_tokenizer(path, tokenizer, model)
    model.to(device)
    model.eval()
    return LoadedPolicy(model, tokenizer, path)


def disable_dropout(config: PretrainedConfig) -> None:
    """Set every dropout probability of a configuration to 0; reinforcement learning needs the same policy each pass."""
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def save_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, card: str | None = None
) -> None:
    """Write a policy so that :func:`load_policy` and the Hugging Face Hub's loader read it: complete or absent.

    Everything goes to a temporary directory beside ``directory``, is flushed to the disk, and is renamed into place; an
    existing ``directory`` stays until the new one is complete.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        directory: target; parents are made.
        card: model card, written as README.md.

    Raises:
        UserError: the disk is full or not writable (nothing is left behind and the old directory is intact), or
            ``directory`` exists and holds something other than a policy.
    """
    check_target(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(directory) as new:
            new.mkdir()
            write_policy(model, tokenizer, new)
            if card is not None:
                (new / "README.md").write_text(card, "utf-8")
    except OSError as error:
        raise UserError(f"policy {directory}: cannot be written: {_first_sentence(error)}") from error


def check_target(directory: Path) -> None:
    """Refuse to replace anything but a policy or an empty directory.

    Raises:
        UserError: ``directory`` exists and holds something else.
    """
    is_policy = (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))
    if directory.exists() and not is_policy and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"policy {directory}: exists and is not a policy; give another directory, or remove it")


def write_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the files of a policy into an existing directory, for callers that see to atomicity themselves.

    Raises:
        OSError: the disk is full or not writable.
    """
    with _quiet_transformers():
        try:
            model.save_pretrained(directory)
        except SafetensorError as error:
            raise OSError(f"{directory / 'model.safetensors'}: {error}") from error
        tokenizer.save_pretrained(directory)
    for file in filter(Path.is_file, directory.iterdir()):
        file.chmod(0o644)  # safetensors writes files that only their owner may read


def _check_source(path: str, source: Path) -> None:
    """Refuse what can be refused from the names of files alone."""
    if not source.is_dir():
        if path == "shipped":
            raise UserError(f"policy shipped: {source} is missing; install the package again, or give a directory")
        if source.exists():
            raise UserError(f"policy {path}: is a file; expected a directory with config.json and model.safetensors")
        if not _HUB_ID.fullmatch(path):
            raise UserError(
                f"policy {path}: no such directory, and not a model id of the Hugging Face Hub (owner/name)"
            )
        return
    if not (source / "config.json").is_file():
        raise UserError(f"policy {path}: config.json is missing; expected a directory in Hugging Face format")
    if not any((source / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickled = sorted(file.name for file in source.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        found = f"found {', '.join(pickled)}, which can run code when read; " if pickled else ""
        raise UserError(f"policy {path}: model.safetensors is missing; {found}save the weights as safetensors")
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(f"policy {path}: tokenizer.json is missing; save the tokenizer beside the weights")


def _check_weights(path: str, info: dict[str, Any]) -> None:
    """Every weight of the model was in the file, with its shape, and nothing else was."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, in_file, in_model = mismatched[0]
        raise UserError(
            f"policy {path}: a checkpoint of another shape: {len(mismatched)} weights differ from config.json, first "
            f"{name}: {tuple(in_file)} in the file, {tuple(in_model)} by config.json"
        )
    for key, problem in (("missing_keys", "lacks"), ("unexpected_keys", "has, beyond config.json,")):
        names = sorted(info[key])
        if names:
            raise UserError(
                f"policy {path}: a checkpoint of another shape: the file {problem} {len(names)} weights, "
                f"first {names[0]}"
            )


def _check_tokenizer(path: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(f"policy {path}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:  # padding is always masked, so its id carries no meaning
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(f"policy {path}: the tokenizer has {len(tokenizer)} tokens, the model only {rows}")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports: what they say is raised as an error or is not the user's business."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_sentence(error: BaseException, limit: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
