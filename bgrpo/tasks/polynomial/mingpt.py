"""Exchange with minGPT: ``.pt`` state dicts with a JSON configuration, as the original BGRPO project publishes them.

Two layouts are read. The *first* one, which the original project uses and which is written, has ``tok_emb``,
``pos_emb`` [1, block, C], ``blocks.i`` with separate ``key``, ``query`` and ``value``, and ``head`` (no bias, untied).
The *second* one, of later minGPT, has ``transformer.wte``, ``transformer.h.i.attn.c_attn`` and ``lm_head``. Both keep
linear weights as [out, in]; GPT-2 in transformers keeps them as [in, out]. Causal masks stored as buffers are ignored.

The first layout computes GELU exactly, the second by its tanh approximation; ``activation`` in the JSON overrides that.
The tokenizer comes from the JSON's ``vocabulary`` (list) or ``stoi`` (token to id), else from the original project's
two fixed vocabularies: 31 tokens for one variable, 73 + MAX_NUMBER_TOKEN (174 as published) for several.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig

from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.tasks.polynomial.tokenizer import DIGITS, PAD, SEPARATOR, tokenizer_from_tokens

State = dict[str, torch.Tensor]

_LETTERS = ("a", "b", "c", "d", "e", "x", "y", "z")
_SYMBOLS = ("N", "P", "&", "+", "*", "^")
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
_MASK = re.compile(r"\.attn\.(mask|bias|masked_bias)$")
_LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)

logger = logging.getLogger(__name__)


def import_mingpt(weights: Path, config: Path, out: Path, tokens: Sequence[str] | None = None) -> None:
    """Write a minGPT model as a policy in Hugging Face format, with the same logits.

    Args:
        weights: ``.pt`` state dict; read without running code from it.
        config: JSON with at least ``n_head``; ``n_layer``, ``n_embd``, ``block_size`` and ``vocab_size`` are checked.
        out: directory of the policy.
        tokens: the vocabulary in the order of ids, when the JSON does not give it.

    Raises:
        UserError: a file that cannot be read or holds something else than weights, or sizes that do not fit together.
    """
    settings = _read_json(config)
    state = _read_state(weights)
    is_first = "tok_emb.weight" in state
    if not is_first and "transformer.wte.weight" not in state:
        raise UserError(
            f"{weights}: not a minGPT state dict; neither tok_emb.weight nor transformer.wte.weight is in it"
        )
    converted = _from_first(state) if is_first else _from_second(state)
    shape = _gpt2_config(settings, converted, config, default_activation="gelu" if is_first else "gelu_new")
    vocabulary = list(tokens) if tokens is not None else _vocabulary(settings, shape.vocab_size, config)
    if len(vocabulary) != shape.vocab_size:
        raise UserError(f"{config}: {len(vocabulary)} tokens, but {weights} has {shape.vocab_size} embeddings")
    tokenizer = tokenizer_from_tokens(vocabulary)
    shape.pad_token_id = tokenizer.pad_token_id
    shape.bos_token_id = shape.eos_token_id = tokenizer.eos_token_id
    model = GPT2LMHeadModel(shape)
    _load_exactly(model, converted, weights)
    save_policy(model, tokenizer, out)


def export_mingpt(policy_dir: Path, weights: Path, config: Path) -> None:
    """Write a GPT-2-shaped policy as a minGPT state dict of the first layout, with its JSON.

    The JSON also holds ``vocabulary`` and ``activation``. The original code computes GELU exactly whatever it says, so
    a policy of another activation gets slightly other logits there (a warning says so).

    Raises:
        UserError: a policy that minGPT cannot express, or files that cannot be written.
    """
    policy = load_policy(str(policy_dir))
    shape: Any = policy.model.config
    _check_expressible(policy_dir, shape)
    if shape.activation_function != "gelu":
        logger.warning(
            "%s: its activation is %s; the original minGPT code computes exact GELU",
            policy_dir,
            shape.activation_function,
        )
    vocabulary = policy.tokenizer.convert_ids_to_tokens(list(range(len(policy.tokenizer))))
    settings = {
        "model_name": weights.name,
        "block_size": shape.n_positions,
        "vocab_size": shape.vocab_size,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "activation": shape.activation_function,
        "vocabulary": vocabulary,
    }
    buffer = io.BytesIO()
    torch.save(_to_first(policy.model.state_dict(), shape), buffer)
    _write(weights, buffer.getvalue())
    _write(config, json.dumps(settings, ensure_ascii=False, indent=1).encode())


def simple_vocabulary() -> list[str]:
    """The original project's 31 tokens for one variable, in the order of ids."""
    return [PAD, *_LETTERS, SEPARATOR, "?", "a0", "a1", "b0", "b1", *_SYMBOLS, *DIGITS]


def extended_vocabulary(numbers: int) -> list[str]:
    """The original project's 73 + ``numbers`` tokens for several variables, in the order of ids."""
    indexed = [f"a{i}" for i in range(19)] + [f"b{i}" for i in range(19)] + [f"n{i}" for i in range(1, 19)]
    return [PAD, *_LETTERS, SEPARATOR, "?", *indexed, *_SYMBOLS, *map(str, range(numbers))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(settings).__name__}")
    return settings


def _read_state(path: Path) -> State:
    """A state dict of tensors, as float32, without the prefix that DistributedDataParallel adds, without masks."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: refused, not a plain state dict of tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors; save model.state_dict()")
    named = {name.removeprefix("module."): tensor.float() for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not _MASK.search(name)}


def _from_first(state: State) -> State:
    """Names and orientation of transformers, from the first layout."""
    converted: State = {}
    for name, tensor in state.items():
        if name == "pos_emb":
            converted["transformer.wpe.weight"] = tensor[0] if tensor.dim() == 3 else tensor
        elif match := re.fullmatch(r"blocks\.(\d+)\.attn\.query\.(weight|bias)", name):
            block, kind = match.groups()
            parts = [state.get(f"blocks.{block}.attn.{part}.{kind}", tensor[:0]) for part in ("query", "key", "value")]
            if len({part.shape[1:] for part in parts}) > 1:
                raise UserError(f"blocks.{block}.attn: query, key and value have different widths")
            joined = torch.cat(parts)
            converted[f"transformer.h.{block}.attn.c_attn.{kind}"] = joined.T if kind == "weight" else joined
        elif not re.fullmatch(r"blocks\.\d+\.attn\.(key|value)\.(weight|bias)", name):
            converted[_rename(name)] = tensor.T if _is_linear(name) else tensor
    return converted


def _from_second(state: State) -> State:
    """Orientation of transformers, from the second layout, whose names are the same."""
    linear = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
    return {name: tensor.T if linear.search(name) else tensor for name, tensor in state.items()}


def _to_first(state: State, shape: Any) -> State:
    """The first layout, causal masks included, from names and orientation of transformers."""
    mask = torch.tril(torch.ones(shape.n_positions, shape.n_positions))[None, None]
    written: State = {}
    for name, tensor in state.items():
        if name == "transformer.wpe.weight":
            written["pos_emb"] = tensor[None].clone()
        elif match := re.fullmatch(r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)", name):
            block, kind = match.groups()
            parts = (tensor.T if kind == "weight" else tensor).chunk(3)
            for part, piece in zip(("query", "key", "value"), parts, strict=True):
                written[f"blocks.{block}.attn.{part}.{kind}"] = piece.clone()
            written[f"blocks.{block}.attn.mask"] = mask.clone()
        else:
            mingpt = _rename(name)
            written[mingpt] = (tensor.T if _is_linear(mingpt) else tensor).clone(memory_format=torch.contiguous_format)
    return written


_NAMES = (  # first layout of minGPT, transformers
    ("tok_emb.", "transformer.wte."),
    ("ln_f.", "transformer.ln_f."),
    ("head.", "lm_head."),
    (".ln1.", ".ln_1."),
    (".ln2.", ".ln_2."),
    (".attn.proj.", ".attn.c_proj."),
    (".mlp.0.", ".mlp.c_fc."),
    (".mlp.2.", ".mlp.c_proj."),
    ("blocks.", "transformer.h."),
)


def _rename(name: str) -> str:
    """A name of the first layout as transformers has it, or the reverse."""
    is_transformers = name.startswith(("transformer.", "lm_head."))
    for mingpt, transformers in _NAMES:
        old, new = (transformers, mingpt) if is_transformers else (mingpt, transformers)
        if name.startswith(old) or (old.startswith(".") and old in name):
            name = name.replace(old, new, 1)
    return name


def _is_linear(name: str) -> bool:
    """Whether a weight of the first layout is turned on the way to GPT-2's Conv1D."""
    return re.fullmatch(r"blocks\.\d+\.(attn\.proj|mlp\.0|mlp\.2)\.weight", name) is not None


def _gpt2_config(settings: dict[str, Any], state: State, path: Path, default_activation: str) -> GPT2Config:
    """The shape of the weights, checked against what the JSON says."""
    try:
        vocab_size, width = state["transformer.wte.weight"].shape
        context = state["transformer.wpe.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the weights beside it lack the token or position embedding") from error
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
    found = {"vocab_size": vocab_size, "n_embd": width, "block_size": context, "n_layer": layers}
    for key, value in found.items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: {key}={settings[key]}, but the weights have {value}")
    heads, activation = settings.get("n_head"), settings.get("activation", default_activation)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{path}: n_head={heads!r}: expected a divisor of n_embd={width}")
    if activation not in _ACTIVATIONS:
        raise UserError(f"{path}: activation={activation!r}: expected one of {', '.join(_ACTIVATIONS)}")
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )


def _vocabulary(settings: dict[str, Any], size: int, path: Path) -> list[str]:
    """The tokens that the JSON gives, or those of the original project for this size."""
    if isinstance(settings.get("vocabulary"), list):
        return [str(token) for token in settings["vocabulary"]]
    if isinstance(settings.get("stoi"), dict):
        return sorted(settings["stoi"], key=settings["stoi"].__getitem__)
    if size == len(simple_vocabulary()):
        return simple_vocabulary()
    numbers = settings.get("MAX_NUMBER_TOKEN", 101)
    if isinstance(numbers, int) and size == len(extended_vocabulary(numbers)):
        return extended_vocabulary(numbers)
    raise UserError(
        f"{path}: the weights have {size} tokens; known are the vocabularies of 31 tokens and of 73 + MAX_NUMBER_TOKEN "
        f"(here {numbers}); add 'vocabulary', the list of tokens in the order of ids"
    )


def _load_exactly(model: GPT2LMHeadModel, state: State, path: Path) -> None:
    """Every weight of the model from the state, with its shape, and none left over."""
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise UserError(
                f"{path}: {'lacks' if name not in state else 'has an unknown weight'} {name} (transformers' name)"
            )
        if state[name].shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} (transformers' name) has shape {tuple(state[name].shape)}, expected "
                f"{tuple(expected[name].shape)}"
            )
    model.load_state_dict(state)


def _check_expressible(path: Path, shape: PretrainedConfig) -> None:
    if not isinstance(shape, GPT2Config):
        raise UserError(f"policy {path}: is a {shape.model_type} model; minGPT can only express gpt2")
    plain = (
        shape.scale_attn_weights
        and not shape.scale_attn_by_inverse_layer_idx
        and shape.n_inner in (None, 4 * shape.n_embd)
        and shape.layer_norm_epsilon == 1e-5
        and shape.activation_function in _ACTIVATIONS
    )
    if not plain:
        raise UserError(
            f"policy {path}: minGPT needs scaled attention, an MLP of 4 × n_embd, layer_norm_epsilon 1e-5 and an "
            f"activation of {', '.join(_ACTIVATIONS)}"
        )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
