"""What the files of a policy's folder say. Only these files are read, sizes first; nothing in them fetches or runs.

The libraries that build configuration, tokenizer and model are given what was read here, never the folder itself: they
would look for more in it (pickles, adapters, generation code), and some of what they find makes them ask the Hub.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from bgrpo.errors import UserError, one_line, reading
from bgrpo.files import readable_file

MODEL_TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")

_OTHER_NAMES = {"embed_out.weight": "lm_head.weight"}
"""What files of a GPT-NeoX call a weight, and what the model calls it."""

_MIB = 1 << 20
_MOST_BYTES = {"tokenizer.json": 48 * _MIB, "model.safetensors.index.json": 16 * _MIB}
_MOST_OTHER_BYTES = 2 * _MIB
_MOST_HEADER_BYTES = 16 * _MIB
_MOST_WEIGHT_BYTES = 1 << 42
_LEAST_TENSORS = 9  # of a layer of any supported model
_GENERIC_KEYS = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
_OLDER_KEYS = {  # read by transformers besides a configuration's own fields
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "layer_types"),
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
_FLOATS = ("F16", "BF16", "F32", "F64")
_IGNORED = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")  # masks, not weights


@dataclass(frozen=True, slots=True)
class PolicyFolder:
    """The checked content of a folder.

    Attributes:
        config: of the model, only with the keys that describe it.
        tokenizer: what ``tokenizer.json`` says, with the special tokens of the files beside it.
        end_tokens: what any file names as end of a text, the tokenizer's own first.
        names: of the weights in the files, and in the model.
        shards: the files that hold them.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast
    end_tokens: tuple[int, ...]
    names: dict[str, str]
    shards: tuple[Path, ...]

    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight, in fp32, under the model's name for it."""
        found: dict[str, torch.Tensor] = {}
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                found |= {self.names[name]: file.get_tensor(name).float() for name in self.names.keys() & file.keys()}
        return found


def read_folder(folder: Path) -> PolicyFolder:
    """Read and check a folder in Hugging Face format; weights are only listed.

    Raises:
        UserError: a file is missing, too large, damaged, or says something that is not supported.
    """
    _check_names(folder)
    raw, generation = _json(folder, "config.json"), _json(folder, "generation_config.json")
    shards = _shards(folder)
    shapes = _shapes(shards)
    config = _config(raw, len(shapes))
    names = _names_in_model(config, shapes)
    tokenizer = _tokenizer(folder, config)
    said = {"config.json": raw, "generation_config.json": generation}
    ends, bos, _ = (_special_ids(said, f"{kind}_token_id", len(tokenizer)) for kind in ("eos", "bos", "pad"))
    ends = tuple(dict.fromkeys((tokenizer.eos_token_id, *ends)))
    config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
    config.bos_token_id = bos[0] if bos else tokenizer.bos_token_id
    return PolicyFolder(config, tokenizer, ends, names, shards)


def _check_names(folder: Path) -> None:
    """Refuse what can be refused from the names of files alone."""
    if (folder / "adapter_config.json").exists():
        raise UserError("holds an adapter (adapter_config.json) of another model: merge it into that model first")
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


def _json(folder: Path, name: str) -> dict[str, Any]:
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
    names = _json(folder, "model.safetensors.index.json").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError("model.safetensors.index.json has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise UserError(
                f"model.safetensors.index.json names {_short(name)}; expected a *.safetensors file beside it"
            )
    return tuple(folder / name for name in sorted(set(names.values())))


def _shapes(shards: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, from the headers of the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        with readable_file(shard, _MOST_WEIGHT_BYTES).open("rb") as opened:
            if int.from_bytes(opened.read(8), "little") > _MOST_HEADER_BYTES:
                raise UserError(f"{shard.name} cannot be loaded: its header is damaged, or it is no safetensors file")
        with (
            reading(f"{shard.name} cannot be loaded"),
            safe_open(shard, framework="pt") as file,
        ):  # compares the header with the size of the file
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                if _IGNORED.search(name):
                    continue
                if entry.get_dtype() not in _FLOATS:
                    raise UserError(f"{shard.name}: {_short(name)} is {entry.get_dtype()}, expected {_FLOATS}")
                if name in shapes:
                    raise UserError(f"{shard.name}: {_short(name)} is in another file too")
                shapes[name] = tuple(entry.get_shape())
    needed = 4 * sum(math.prod(shape) for shape in shapes.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(f"its weights take {needed / 1e9:,.1f} GB in fp32, this machine has {memory / 1e9:,.1f} GB")
    return shapes


def _config(raw: dict[str, Any], tensors: int) -> PretrainedConfig:
    """The model's configuration: keys that say how to load, and where from, are left out."""
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        name = CONFIG_MAPPING_NAMES.get(str(model_type), "unknown")
        raise UserError(f"model_type {_short(model_type)} ({name}) cannot be loaded: only {', '.join(MODEL_TYPES)} can")
    for key, remedy in _REFUSED_KEYS.items():
        if raw.get(key):
            raise UserError(f"config.json has {key}, which cannot be loaded: {remedy}")
    for key in ("n_layer", "num_hidden_layers"):
        layers = raw.get(key, 1)
        if type(layers) is not int or not 1 <= layers <= max(1, tensors // _LEAST_TENSORS):
            raise UserError(
                f"a checkpoint of another shape: config.json says {key}={_short(layers)}, "
                f"the file has {tensors} weights"
            )
    kind = CONFIG_MAPPING[model_type]
    own = {field.name for field in dataclasses.fields(kind)} - {
        field.name for field in dataclasses.fields(PretrainedConfig)
    }
    read = own | set(kind.attribute_map) | _GENERIC_KEYS | _OLDER_KEYS
    with reading("config.json cannot be loaded"):
        config: PretrainedConfig = kind(**{key: value for key, value in raw.items() if key in read})
        return config


def model_class(config: PretrainedConfig) -> Any:
    """The causal language model of transformers that a configuration describes."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _names_in_model(config: PretrainedConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """For each weight of the files its name in the model, which has exactly these weights, in these shapes."""
    with torch.device("meta"), no_init_weights():
        model = model_class(config)(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = {name: _OTHER_NAMES.get(name, name) for name in shapes}
    for name in names.keys() - expected.keys():
        if names[name] == name:
            names[name] = f"{model.base_model_prefix}.{name}"
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    unknown = sorted(name for name, inside in names.items() if inside not in expected)
    lacking = sorted(expected.keys() - set(names.values()) - tied)
    other = sorted(name for name, inside in names.items() if expected.get(inside, shapes[name]) != shapes[name])
    what = "a checkpoint of another shape: "
    if other:
        raise UserError(
            f"{what}{len(other)} weights differ from config.json, first {_short(other[0])}: {shapes[other[0]]} in the "
            f"file, {expected[names[other[0]]]} by config.json"
        )
    for problem, found in (("lacks", lacking), ("has, beyond config.json,", unknown)):
        if found:
            raise UserError(f"{what}the file {problem} {len(found)} weights, first {_short(found[0])}")
    return names


def _tokenizer(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """From ``tokenizer.json``; of the files beside it only names of tokens and plain switches are taken."""
    said = _json(folder, "special_tokens_map.json") | _json(folder, "tokenizer_config.json")
    if (folder / "chat_template.jinja").exists():
        said["chat_template"] = _text(folder, "chat_template.jinja")
    text = _text(folder, "tokenizer.json")
    with reading("tokenizer.json cannot be loaded"):
        backend = Tokenizer.from_str(text)
        backend.no_padding()
        backend.no_truncation()
        known = backend.get_vocab()
    if sorted(known.values()) != list(range(len(known))):
        raise UserError(f"tokenizer.json has {len(known)} tokens, whose ids are not 0 to {len(known) - 1}, each once")
    if len(known) > config.vocab_size:
        raise UserError(f"the tokenizer has {len(known)} tokens, the model only {config.vocab_size}")
    if "<|endoftext|>" in known and str(said.get("tokenizer_class", "GPT2Tokenizer")).startswith("GPT2Tokenizer"):
        said = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | said  # GPT-2's own files do not say it
    settings = {name: said[name] for name, kind in _TOKENIZER_SETTINGS.items() if isinstance(said.get(name), kind)}
    longest = said.get("model_max_length")
    if isinstance(longest, int) and longest >= config.max_position_embeddings:  # transformers warns of longer texts
        settings["model_max_length"] = longest
    for name in _TOKEN_NAMES:
        token = said.get(name)
        settings[name] = token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not (isinstance(token, str) and token in known):
            raise UserError(f"tokenizer_config.json says {name}={_short(token)}: tokenizer.json has no such token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:  # padding is always masked, so its id carries no meaning
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _special_ids(said: dict[str, dict[str, Any]], key: str, tokens: int) -> tuple[int, ...]:
    """The ids that the files give for ``key``, one or several, each checked to be a token."""
    ids: list[int] = []
    for name, content in said.items():
        value = content.get(key)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < tokens:
                raise UserError(f"{name} says {key}={_short(token)}: the tokenizer has ids 0 to {tokens - 1}")
            ids.append(token)
    return tuple(ids)


def _short(name: object) -> str:
    return one_line(repr(name) if isinstance(name, str) else str(name), 80)
