"""Exchange with minGPT: ``.pt`` state dicts (and safetensors, which are read) with a JSON configuration.

So the original BGRPO project publishes its models.

Two layouts are read. The *first* one, which the original project uses and which is written, has ``tok_emb``,
``pos_emb`` [1, block, C], ``blocks.i`` with separate ``key``, ``query`` and ``value``, and ``head`` (no bias, untied).
The *second* one, of later minGPT, has ``transformer.wte``, ``transformer.h.i.attn.c_attn`` and ``lm_head``. Both keep
linear weights as [out, in]; GPT-2 in transformers keeps them as [in, out]. Causal masks stored as buffers are ignored.

The first layout computes GELU exactly, the second by its tanh approximation; ``activation`` in the JSON overrides that.
The tokenizer comes from the JSON's ``vocabulary`` (list) or ``stoi`` (token to id), else from the original project's
two fixed vocabularies: 31 tokens for one variable, 73 + MAX_NUMBER_TOKEN (174 as published) for several.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig, PreTrainedTokenizerFast

from bgrpo.errors import UserError, one_line, reading
from bgrpo.files import atomic_path, readable_file, write_atomically
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.tasks.polynomial.tokenizer import DIGITS, PAD, SEPARATOR, tokenizer_from_tokens

State = dict[str, torch.Tensor]

_LETTERS = ("a", "b", "c", "d", "e", "x", "y", "z")
_SYMBOLS = ("N", "P", "&", "+", "*", "^")
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
_MASK = re.compile(r"\.attn\.(mask|bias|masked_bias)$")
_LINEAR = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # [out, in] in minGPT, [in, out] in transformers
_FIRST_NAMES = (  # of transformers, and of the first layout of minGPT
    ("transformer.wte.", "tok_emb."),
    ("transformer.wpe.weight", "pos_emb"),
    ("transformer.h.", "blocks."),
    ("transformer.ln_f.", "ln_f."),
    ("lm_head.", "head."),
    (".ln_1.", ".ln1."),
    (".ln_2.", ".ln2."),
    (".attn.c_proj.", ".attn.proj."),
    (".mlp.c_fc.", ".mlp.0."),
    (".mlp.c_proj.", ".mlp.2."),
)
_TOKENS = "tok_emb.weight"
_MOST_JSON_BYTES = 1 << 24
_MOST_WEIGHT_BYTES = 1 << 42

logger = logging.getLogger(__name__)


def import_mingpt(weights: Path, config: Path, out: Path, tokens: Sequence[str] | None = None) -> None:
    """Write a minGPT model as a policy in Hugging Face format, with the same logits.

    Args:
        weights: ``.pt`` or ``.safetensors`` state dict; read without running code from it. Names may have the prefix
            of a wrapper around the model.
        config: JSON with at least ``n_head``; ``n_layer``, ``n_embd``, ``block_size`` and ``vocab_size`` are checked.
        out: directory of the policy.
        tokens: the vocabulary in the order of ids, when the JSON does not give it.

    Raises:
        UserError: a file that cannot be read or holds something else than weights, or sizes that do not fit together.
    """
    with reading(f"{weights}, {config}: cannot be read as a minGPT model"):
        model, tokenizer = _read_model(weights, config, tokens)
    save_policy(model, tokenizer, out)


def _read_model(
    weights: Path, config: Path, tokens: Sequence[str] | None
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    settings = _read_json(config)
    state = _read_state(weights)
    is_first = _TOKENS in state
    if not is_first and "transformer.wte.weight" not in state:
        raise UserError(
            f"{weights}: not a minGPT state dict; neither tok_emb.weight nor transformer.wte.weight is in it"
        )
    shape = _gpt2_config(settings, state, config, is_first)
    vocabulary = list(tokens) if tokens is not None else _vocabulary(settings, shape.vocab_size, config)
    if len(vocabulary) != shape.vocab_size:
        raise UserError(f"{config}: {len(vocabulary)} tokens, but {weights} has {shape.vocab_size} embeddings")
    tokenizer = tokenizer_from_tokens(vocabulary)
    shape.pad_token_id = tokenizer.pad_token_id
    shape.bos_token_id = shape.eos_token_id = tokenizer.eos_token_id
    model = GPT2LMHeadModel(shape)
    _load_exactly(model, state, is_first, weights)
    return model, tokenizer


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
        **{key: getattr(shape, key) for key in ("vocab_size", "n_layer", "n_head", "n_embd")},
        "activation": shape.activation_function,
        "vocabulary": vocabulary,
    }
    try:
        with atomic_path(weights) as new:
            torch.save(_to_first(policy.model.state_dict(), shape), new)
        write_atomically(config, json.dumps(settings, ensure_ascii=False, indent=1))
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer, of a full disk
        raise UserError(f"{weights}, {config}: cannot be written: {error}") from error


def simple_vocabulary() -> list[str]:
    """The original project's 31 tokens for one variable, in the order of ids."""
    return [PAD, *_LETTERS, SEPARATOR, "?", "a0", "a1", "b0", "b1", *_SYMBOLS, *DIGITS]


def extended_vocabulary(numbers: int) -> list[str]:
    """The original project's 73 + ``numbers`` tokens for several variables, in the order of ids."""
    indexed = [f"a{i}" for i in range(19)] + [f"b{i}" for i in range(19)] + [f"n{i}" for i in range(1, 19)]
    return [PAD, *_LETTERS, SEPARATOR, "?", *indexed, *_SYMBOLS, *map(str, range(numbers))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(readable_file(path, _MOST_JSON_BYTES).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(settings).__name__}")
    return settings


def _read_state(path: Path) -> State:
    """A state dict of tensors, as float32, without the prefix that DistributedDataParallel adds, without masks."""
    size = readable_file(path, _MOST_WEIGHT_BYTES).stat().st_size
    with reading(f"{path}: refused, not a plain state dict of tensors"):
        if zipfile.is_zipfile(path) and sum(part.file_size for part in zipfile.ZipFile(path).infolist()) > size:
            raise UserError(f"{path}: refused, its content is compressed")
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise UserError(f"{path}: expected a state dict of tensors; save model.state_dict()")
    if sum(tensor.numel() for tensor in state.values()) > size:  # views that repeat few numbers
        raise UserError(f"{path}: its tensors have more numbers than the file has bytes")
    found: State = {}
    prefix = next((name.removesuffix(_TOKENS) for name in state if name.endswith(f".{_TOKENS}")), "")  # of a wrapper
    prefix = prefix.removeprefix("module.")
    for full_name, tensor in state.items():
        name = full_name.removeprefix("module.").removeprefix(prefix)
        if _MASK.search(name):
            continue
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{path}: {_short(name)} is {tensor.dtype}, expected a plain tensor of floating point")
        found[name] = tensor[0].float() if name == "pos_emb" and tensor.dim() == 3 and len(tensor) else tensor.float()
        if tensor.numel() and not all(map(math.isfinite, torch.aminmax(found[name]))):
            raise UserError(f"{path}: {_short(name)} is not finite: it holds NaN or infinity")
    return found


def _short(name: object) -> str:
    return one_line(str(name), 80)


def _names(name: str, is_first: bool) -> list[str]:
    """The weights of minGPT that, one under the other, make up a weight of transformers."""
    if not is_first:
        return [name]
    for transformers, mingpt in _FIRST_NAMES:
        name = name.replace(transformers, mingpt, 1)
    return [name.replace("c_attn", part) for part in ("query", "key", "value")] if "c_attn" in name else [name]


def _load_exactly(model: GPT2LMHeadModel, state: State, is_first: bool, path: Path) -> None:
    """Every weight of the model from the state, with its shape, and none left over."""
    left, converted = dict(state), {}
    for target, expected in model.state_dict().items():
        names, is_linear = _names(target, is_first), _LINEAR.search(target)
        shape = expected.T.shape if is_linear else expected.shape
        for name in names:
            if name not in left:
                raise UserError(f"{path}: lacks {name}")
            wanted = (shape[0] // len(names), *shape[1:])
            if left[name].shape != wanted:
                raise UserError(f"{path}: {name} has shape {tuple(left[name].shape)}, expected {wanted}")
        joined = torch.cat([left.pop(name) for name in names])
        converted[target] = joined.T if is_linear else joined
    if left:
        raise UserError(f"{path}: has an unknown weight {_short(min(left))}")
    model.load_state_dict(converted)


def _to_first(state: State, shape: Any) -> State:
    """The first layout, causal masks included, from names and orientation of transformers."""
    mask = torch.tril(torch.ones(shape.n_positions, shape.n_positions))[None, None]
    written = {f"blocks.{block}.attn.mask": mask.clone() for block in range(shape.n_layer)}
    for source, tensor in state.items():
        names = _names(source, is_first=True)
        for name, part in zip(names, (tensor.T if _LINEAR.search(source) else tensor).chunk(len(names)), strict=True):
            whole = part.clone(memory_format=torch.contiguous_format)  # a view would take the other parts along
            written[name] = whole[None] if name == "pos_emb" else whole
    return written


def _gpt2_config(settings: dict[str, Any], state: State, path: Path, is_first: bool) -> GPT2Config:
    """The shape of the weights, checked against what the JSON says."""
    (tokens,), (positions,) = (_names(f"transformer.{part}.weight", is_first) for part in ("wte", "wpe"))
    try:
        vocab_size, width = state[tokens].shape
        context = state[positions].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the weights beside it lack the token or position embedding") from error
    layers = len({match[1] for name in state if (match := re.match(r"(?:transformer\.h|blocks)\.(\d+)\.", name))})
    found = {"vocab_size": vocab_size, "n_embd": width, "block_size": context, "n_layer": layers}
    for key, value in found.items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: {key}={_short(settings[key])}, but the weights have {value}")
    heads, activation = settings.get("n_head"), settings.get("activation", "gelu" if is_first else "gelu_new")
    if type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"{path}: n_head={_short(heads)}: expected a divisor of n_embd={width}")
    if activation not in _ACTIVATIONS:
        raise UserError(f"{path}: activation={_short(repr(activation))}: expected one of {', '.join(_ACTIVATIONS)}")
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
    if type(numbers) is int and 0 <= numbers == size - len(extended_vocabulary(0)):
        return extended_vocabulary(numbers)
    raise UserError(
        f"{path}: the weights have {size} tokens; known are the vocabularies of 31 tokens and of 73 + MAX_NUMBER_TOKEN "
        f"(here {_short(numbers)}); add 'vocabulary', the list of tokens in the order of ids"
    )


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
