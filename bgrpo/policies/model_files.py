"""What the files of a model's folder say. Only these files are read, sizes first; nothing in them fetches or runs.

The libraries that build configuration, tokenizer and model are given what was read here, never the folder itself: they
would look for more in it (pickles, adapters, generation code), and some of what they find makes them ask the Hub.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from bgrpo.errors import UserError, one_line, reading
from bgrpo.files import readable_file
from bgrpo.policies.tokenizer_growth import check_charsmaps, check_growth

_MIB = 1 << 20
_MOST_BYTES = {"tokenizer.json": 48 * _MIB, "model.safetensors.index.json": 16 * _MIB}
_MOST_OTHER_BYTES = 2 * _MIB
_MOST_HEADER_BYTES = 16 * _MIB
_MOST_WEIGHT_BYTES = 1 << 42
_SURE_SIZE = 1 << 16  # larger numbers in config.json are sizes of weights, lengths or ids
_MOST_POSITIONS = 1 << 24
_LENGTHS = re.compile(r"position|length|seq|window|max_")
_NO_SIZES = re.compile(r"theta|base|seed|token_(id|index)$")
_GENERIC_KEYS = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
_OLDER_KEYS = {  # read by transformers besides a configuration's own fields
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "layer_types"),
    *("global_rope_theta", "local_rope_theta", "rope_local_base_freq", "global_attn_every_n_layers", "n_embed"),
    *("sliding_window_pattern", "first_k_dense_replace", "moe_layer_freq", "full_attention_interval"),
    *("pooler_hidden_size", "attention_windows", "head_dim"),
}
_REFUSED_KEYS = {
    "quantization_config": "save plain weights",
    "per_layer_config": "all layers must be alike",
}
_TOKEN_NAMES = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
_TOKENIZER_SETTINGS = {
    **dict.fromkeys(("add_bos_token", "add_eos_token", "split_special_tokens", "clean_up_tokenization_spaces"), bool),
    "padding_side": str,
    "chat_template": str,
    "model_input_names": list,
}
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_COPY_AGAIN = "copy it again from where it is whole"
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (git lfs pull fetches that)",
    b"PK\x03\x04": "a file of PyTorch, a pickle, which can run code when read",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
_IGNORED = re.compile(  # masks and counters, not weights
    r"(^|\.)(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)(position|token_type)_ids$"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a folder holds, checked; weights are only listed.

    Attributes:
        folder: where it is.
        config: what ``config.json`` says.
        shards: the files of the weights.
        shapes: of every weight, by its name in the files.
    """

    folder: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]

    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight, in fp32, by its name in the files.

        Raises:
            UserError: a weight holds something else than numbers.
        """
        found: dict[str, torch.Tensor] = {}
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                found |= {name: file.get_tensor(name).float() for name in self.shapes.keys() & file.keys()}
        for name, tensor in found.items():
            if tensor.numel() and not all(map(math.isfinite, torch.aminmax(tensor))):  # NaN comes through both
                raise UserError(f"weight {one_line(name, 80)} is not finite in fp32: it holds NaN or infinity")
        return found

    def digests(self) -> Iterator[tuple[str, str]]:
        """(name, digest of the values in fp32) of every weight, in the order of names, in bounded memory."""
        places: dict[str, tuple[Path, int, int, torch.dtype]] = {}
        for shard in self.shards:
            with shard.open("rb") as opened:
                size = struct.unpack("<Q", opened.read(8))[0]
                header = json.loads(opened.read(size))
            for name in self.shapes.keys() & header.keys():
                start, end = header[name]["data_offsets"]
                places[name] = (shard, 8 + size + start, end - start, _FLOATS[header[name]["dtype"]])
        for name, (shard, start, left, dtype) in sorted(places.items()):
            digest = hashlib.sha256()
            with shard.open("rb") as opened:
                opened.seek(start)
                while left:
                    block = bytearray(opened.read(min(left, _MIB)))
                    if not block:
                        raise UserError(f"{shard.name} ends while it is read")
                    left -= len(block)
                    digest.update(torch.frombuffer(block, dtype=dtype).float().numpy().tobytes())
            yield name, digest.hexdigest()


def read_model_files(folder: Path) -> ModelFiles:
    """Read and check ``config.json`` and the headers of the weights of a folder in Hugging Face format.

    Raises:
        UserError: a file is missing, too large, damaged, or says something that is not supported.
    """
    _check_names(folder)
    raw = read_json(folder, "config.json")
    shards = _shards(folder)
    return ModelFiles(folder, raw, shards, weight_shapes(shards))


def _check_names(folder: Path) -> None:
    """Refuse what can be refused from the names of files alone."""
    if (folder / "adapter_config.json").exists():
        raise UserError("holds an adapter (adapter_config.json) of another model, which can only be a policy")
    if not (folder / "config.json").exists():
        inner = folder / "policy"
        hint = f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise UserError(f"config.json is missing; expected a directory in Hugging Face format{hint}")
    if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        found = f"found {', '.join(pickled)}, which can run code when read; " if pickled else ""
        raise UserError(f"model.safetensors is missing; {found}save the weights as safetensors")
    if not (folder / "tokenizer.json").exists():
        raise UserError("tokenizer.json is missing; save the tokenizer beside the weights, in this format")


def _text(folder: Path, name: str) -> str:
    path = readable_file(folder / name, _MOST_BYTES.get(name, _MOST_OTHER_BYTES))
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no such file."""
    if not (folder / name).exists():
        return {}
    try:
        found = json.loads(_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a {type(found).__name__}, expected an object")
    return found


def _shards(folder: Path) -> tuple[Path, ...]:
    """The files of the weights; an index may only name safetensors of this folder."""
    if (folder / "model.safetensors").exists():
        return (folder / "model.safetensors",)
    names = read_json(folder, "model.safetensors.index.json").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError("model.safetensors.index.json has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise UserError(
                f"model.safetensors.index.json names {shortened(name)}; expected a *.safetensors file beside it"
            )
    return tuple(folder / name for name in sorted(set(names.values())))


def check_weight_file(path: Path) -> None:
    """Refuse what is no complete file of weights: its header says how long it is.

    Raises:
        UserError: what is wrong with it, in words, and what would be right.
    """
    size = readable_file(path, _MOST_WEIGHT_BYTES).stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        for begins, kind in _OTHER_FILES.items():
            if start.startswith(begins):
                raise UserError(f"{path.name} is {kind}; expected weights as safetensors")
        if size < 8 or (start[8:9] == b"{" and 8 + length > size and length <= _MOST_HEADER_BYTES):
            raise UserError(f"{path.name} has {size:,} bytes, less than its header: it was cut short; {_COPY_AGAIN}")
        if start[8:9] != b"{" or length > _MOST_HEADER_BYTES:
            raise UserError(f"{path.name} is no safetensors file, or its first bytes are damaged; {_COPY_AGAIN}")
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path.name}: its header is damaged ({one_line(str(error), 80)}); {_COPY_AGAIN}"
            ) from error
    if size != needed:
        how = "it was cut short" if size < needed else "it was damaged, or something was added"
        raise UserError(f"{path.name} has {size:,} bytes, its header says {needed:,}: {how}; {_COPY_AGAIN}")


def weight_shapes(shards: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, from the headers of the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        check_weight_file(shard)
        with (
            reading(f"{shard.name} cannot be loaded"),
            safe_open(shard, framework="pt") as file,
        ):  # compares the header with the size of the file
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                if _IGNORED.search(name):
                    continue
                if entry.get_dtype() not in _FLOATS:
                    known = ", ".join(_FLOATS)
                    raise UserError(f"{shard.name}: {shortened(name)} is {entry.get_dtype()}, expected {known}")
                if name in shapes:
                    raise UserError(f"{shard.name}: {shortened(name)} is in another file too")
                shapes[name] = tuple(entry.get_shape())
    needed = 4 * sum(math.prod(shape) for shape in shapes.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(f"its weights take {needed / 1e9:,.1f} GB in fp32, this machine has {memory / 1e9:,.1f} GB")
    return shapes


def model_config(files: ModelFiles, kinds: Collection[str], further: Collection[str] = ()) -> PretrainedConfig:
    """The model's configuration: keys that say how to load, and where from, are left out.

    Args:
        files: of the model.
        kinds: the values of ``model_type`` that can be loaded.
        further: keys that are read besides those that describe the model's body.

    Raises:
        UserError: another kind of model, a key that changes what would be loaded, or sizes that no weight has.
    """
    raw = files.config
    model_type = raw.get("model_type")
    if raw.get("auto_map") and model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"model_type {shortened(model_type)} cannot be loaded: it needs code of its own (auto_map); none is run"
        )
    if not isinstance(model_type, str) or model_type not in kinds:
        name = CONFIG_MAPPING_NAMES.get(str(model_type), "unknown")
        known = f"only {', '.join(kinds)} can" if len(kinds) < 10 else "no such text model of this kind is known here"
        raise UserError(f"model_type {shortened(model_type)} ({name}) cannot be loaded: {known}")
    for key, remedy in _REFUSED_KEYS.items():
        if raw.get(key):
            raise UserError(f"config.json has {key}, which cannot be loaded: {remedy}")
    kind = CONFIG_MAPPING[model_type]
    own = {field.name for field in dataclasses.fields(kind)} - {
        field.name for field in dataclasses.fields(PretrainedConfig)
    }
    read = own | set(kind.attribute_map) | set(kind.attribute_map.values()) | _GENERIC_KEYS | _OLDER_KEYS | set(further)
    kept = {key: value for key, value in raw.items() if key in read}
    sizes = {size for shape in files.shapes.values() for size in shape}
    for key, number in _integers("", kept):
        limit = math.inf if _NO_SIZES.search(key) else _MOST_POSITIONS if _LENGTHS.search(key) else _SURE_SIZE
        if number > limit and number not in sizes:
            raise UserError(f"a checkpoint of another shape: config.json says {key}={number}, no weight has that size")
    for key in kind.sub_configs.keys() & kept.keys():
        if isinstance(kept[key], dict):
            kept[key] = {name: value for name, value in kept[key].items() if not name.startswith("_")}
            for name in ("attn_implementation", "experts_implementation", *_REFUSED_KEYS):
                kept[key].pop(name, None)
    with reading("config.json cannot be loaded"):
        config: PretrainedConfig = kind(**kept)
        return config


def _integers(key: str, value: Any) -> Iterator[tuple[str, int]]:
    """(nearest key, number) of every integer in a JSON value."""
    if type(value) is int:
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from _integers(name, inner)


def empty_model(files: ModelFiles, kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The model that a configuration describes, without memory for its weights.

    Raises:
        UserError: it is much larger than what the files hold.
    """
    limit = 4 * len(files.shapes) + 256
    with (
        reading("config.json cannot be loaded"),
        _parameters_at_most(limit),
        torch.device("meta"),
        no_init_weights(),
    ):
        model: PreTrainedModel = kind(config)
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    held = sum(math.prod(shape) for shape in files.shapes.values())
    if numbers > 2 * held + (1 << 28):
        raise UserError(
            f"a checkpoint of another shape: config.json asks for {numbers:,} numbers, the file has {held:,}"
        )
    return model


@contextmanager
def _parameters_at_most(limit: int) -> Iterator[None]:
    """Ends the building of a model, in this thread, that has more parameters."""
    thread, left = threading.get_ident(), limit

    def count(*_: object) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise UserError(
                f"a checkpoint of another shape: config.json asks for more than {limit} weights, the file has fewer"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def weights_in_files(model: PreTrainedModel, files: ModelFiles) -> dict[str, torch.Tensor]:
    """The weights of an empty model as files hold them: some types keep apart there what the model has in one.

    Args:
        model: from :func:`empty_model`.
        files: of the model; they may use the model's own names too.
    """
    own: dict[str, torch.Tensor] = model.state_dict()
    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, own)
    return own if len(files.shapes.keys() & own.keys()) >= len(files.shapes.keys() & saved.keys()) else saved


def names_in_model(
    model: PreTrainedModel, files: ModelFiles, weights: dict[str, torch.Tensor] | None = None
) -> dict[str, str]:
    """For each weight of the files its name in the model, as far as the model has it, with or without its prefix.

    Args:
        model: from :func:`empty_model`.
        files: of the model.
        weights: see :func:`weights_in_files`; default: those of the model.

    Raises:
        UserError: a weight has another shape there.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in (weights or model.state_dict()).items()}
    shapes = files.shapes
    names = {name: name for name in shapes}
    for name in names.keys() - expected.keys():
        if names[name] == name:
            names[name] = f"{model.base_model_prefix}.{name}"
    other = sorted(name for name, inside in names.items() if expected.get(inside, shapes[name]) != shapes[name])
    if other:
        raise UserError(
            f"a checkpoint of another shape: {len(other)} weights differ from config.json, first "
            f"{shortened(other[0])}: {shapes[other[0]]} in the file, {expected[names[other[0]]]} by config.json"
        )
    return names


def read_tokenizer(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """From ``tokenizer.json``; of the files beside it only names of tokens and plain settings are taken.

    Raises:
        UserError: it is damaged, names tokens that it lacks, or has more tokens than the model.
    """
    said = read_json(folder, "special_tokens_map.json") | read_json(folder, "tokenizer_config.json")
    if (folder / "chat_template.jinja").exists():
        said["chat_template"] = _text(folder, "chat_template.jinja")
    text = _text(folder, "tokenizer.json")
    with reading("tokenizer.json cannot be loaded"):
        check_charsmaps(text)
        backend = Tokenizer.from_str(text)
        backend.no_padding()
        backend.no_truncation()
        check_growth(backend)
        known = backend.get_vocab()
    if sorted(known.values()) != list(range(len(known))):
        raise UserError(f"tokenizer.json has {len(known)} tokens, whose ids are not 0 to {len(known) - 1}, each once")
    rows = config.get_text_config().vocab_size
    if len(known) > rows:
        raise UserError(f"the tokenizer has {len(known)} tokens, the model only {rows}")
    said = _usual_tokens(said.get("tokenizer_class"), config.model_type, known) | said
    settings = {name: said[name] for name, kind in _TOKENIZER_SETTINGS.items() if isinstance(said.get(name), kind)}
    longest = said.get("model_max_length")
    if type(longest) is int and longest > 0:
        settings["model_max_length"] = longest
    for name in _TOKEN_NAMES:
        token = said.get(name)
        settings[name] = token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not (isinstance(token, str) and token in known):
            raise UserError(f"tokenizer_config.json says {name}={shortened(token)}: tokenizer.json has no such token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def _usual_tokens(named: object, model_type: str, known: Collection[str]) -> dict[str, str]:
    """The special tokens that a class of tokenizers has where the files are silent, as those of GPT-2 and RoBERTa."""
    name = str(named or TOKENIZER_MAPPING_NAMES.get(model_type)).removesuffix("Fast")
    kind = tokenizer_class_from_name(name) if name in TOKENIZER_MAPPING_NAMES.values() else None
    usual = inspect.signature(kind).parameters if kind else {}
    return {token: usual[token].default for token in _TOKEN_NAMES if token in usual and usual[token].default in known}


def special_ids(said: dict[str, dict[str, Any]], key: str, tokens: int) -> tuple[int, ...]:
    """The ids that the files give for ``key``, one or several, each checked to be a token.

    Raises:
        UserError: one is no token.
    """
    ids: list[int] = []
    for name, content in said.items():
        value = content.get(key)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < tokens:
                raise UserError(f"{name} says {key}={shortened(token)}: the tokenizer has ids 0 to {tokens - 1}")
            ids.append(token)
    return tuple(ids)


def shortened(name: object) -> str:
    """A name or value of a file, fit for a message."""
    return one_line(repr(name) if isinstance(name, str) else str(name), 80)
