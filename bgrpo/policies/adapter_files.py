"""The folder of an adapter, in peft's format: what its files say, and no more; no code, no pickle, no network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.errors import UserError, one_line
from bgrpo.policies.adapter import Adapter, linear_layers, pairs_of
from bgrpo.policies.model_files import ModelFiles, read_json, shortened, weight_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 4096
_PREFIX = "base_model.model."
_READ = {"base_model_name_or_path", "lora_alpha", "peft_type", "r", "task_type", "use_rslora"}
_WITHOUT_EFFECT = {  # on what an adapter that is not learned computes
    *("auto_mapping", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "lora_dropout", "loftq_config", "megatron_config", "megatron_core"),
    *("ensure_weight_tying", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    *("lora_ga_config", "velora_config", "monteclora_config"),
}
_PLAIN_STARTS = (True, False, None, "gaussian")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, by the names of its files."""
    return (folder / CONFIG).exists()


def read_adapter(folder: Path) -> tuple[Path, Adapter]:
    """The folder of the base model, and the adapter, in fp32.

    Which layers it changes, the names of its weights say: patterns of its configuration are not read.

    Raises:
        UserError: a file is missing, damaged, or says something that is not supported; the base is not here.
    """
    said = read_json(folder, CONFIG)
    if said.get("peft_type") != "LORA":
        raise UserError(f"{CONFIG} says peft_type={shortened(said.get('peft_type'))}: only LORA can be loaded")
    if said.get("task_type") not in ("CAUSAL_LM", None):
        raise UserError(f"{CONFIG} says task_type={shortened(said['task_type'])}: expected CAUSAL_LM")
    rank: Any = said.get("r")
    alpha: Any = said.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MOST_RANK:
        raise UserError(f"{CONFIG} says r={shortened(rank)}: expected a rank of 1 to {MOST_RANK}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha) or not 0 < abs(alpha) <= 10**6:
        raise UserError(f"{CONFIG} says lora_alpha={shortened(alpha)}: expected a number up to 1,000,000, and not 0")
    _check_plain(said)
    if not (folder / WEIGHTS).exists():
        found = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        pickled = f"found {', '.join(found)}, which can run code when read; " if found else ""
        raise UserError(f"{WEIGHTS} is missing; {pickled}save the adapter as safetensors")
    shapes = weight_shapes((folder / WEIGHTS,))
    if not shapes:
        raise UserError(f"{WEIGHTS} holds no weights")
    for name, shape in shapes.items():
        if not (name.startswith(_PREFIX) and len(shape) == 2 and shape["lora_B" in name] == rank):
            raise UserError(f"{WEIGHTS}: {shortened(name)} of {shape} is no factor of rank {rank} of a linear layer")
    tensors = ModelFiles(folder, said, (folder / WEIGHTS,), shapes).weights()
    factors = pairs_of({name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()})
    alpha = alpha * math.sqrt(rank) if said.get("use_rslora") else alpha
    return _base_folder(said.get("base_model_name_or_path")), Adapter(rank, float(alpha), factors)


def write_adapter(adapter: Adapter, model: PreTrainedModel, directory: Path) -> None:
    """Write the two files of an adapter into an existing directory.

    Args:
        adapter: of the model.
        model: the base, or with the adapter; its ``config.name_or_path`` is where the base is.
        directory: to be filled.

    Raises:
        OSError: the disk is full or not writable.
    """
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(str(model.config.name_or_path)).absolute()),
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(adapter, model),
        "fan_in_fan_out": any(isinstance(_layer(model, path), Conv1D) for path in adapter.factors),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    tensors = {f"{_PREFIX}{name}": tensor for name, tensor in adapter.tensors().items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def _check_plain(said: dict[str, Any]) -> None:
    """Refuse what would make the adapter compute something else than W0 + scale × B A."""
    for key, value in said.items():
        if key == "bias" and value in ("none", None):
            continue
        if key == "init_lora_weights" and any(value is start or value == start for start in _PLAIN_STARTS):
            continue  # others change the base's weights
        if key not in _READ | _WITHOUT_EFFECT and value:
            raise UserError(f"{CONFIG} has {shortened(key)}={shortened(value)}, which cannot be loaded")


def _base_folder(name: Any) -> Path:
    """Where the base model is on this machine."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{CONFIG} says base_model_name_or_path={shortened(name)}: expected the folder of a model")
    try:
        folder = Path(str(name)).expanduser()
        found = folder if folder.is_dir() else _cached(str(name))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{CONFIG}: base_model_name_or_path: {one_line(str(error))}") from error
    if found is None:
        raise UserError(
            f"its base model {shortened(name)} is not here, and nothing is fetched for an adapter: put the base's "
            f"folder into base_model_name_or_path of {CONFIG}"
        )
    if is_adapter(found):
        raise UserError(f"its base model {shortened(name)} is an adapter itself: merge that first")
    return found


def _cached(name: str) -> Path | None:
    """A model of the Hub that was brought here before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not _HUB_ID.fullmatch(name) or len(name) > 96:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None


def _target_modules(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """Names of layers, where these are all that have them; else their paths."""
    names = {path.rsplit(".", 1)[-1] for path in adapter.factors}
    layers = {path.replace(".base_layer", "") for path in linear_layers(model) if ".lora_" not in path}
    alike = {path for path in layers if path.rsplit(".", 1)[-1] in names}
    return sorted(names if alike == adapter.factors.keys() else adapter.factors)


def _layer(model: PreTrainedModel, path: str) -> torch.nn.Module:
    layer = model.get_submodule(path)
    return getattr(layer, "base_layer", layer)
