"""Mutations of files, drawn from a seed: what disks, editors and people who mean harm do to them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 49, 10**5, 10**9, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, -1e308, 1e-320),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        "x",
        "1",
        "../x",
        "/etc/passwd",
        "owner/kernel",
        "\x00",
        "\x1b[2J",
    ),
    *("□", "⁇", "é" * 300, [], [[]], {}, [1, 2], [2, 3, 10**9], ["a"], {"a": 1}, {"content": "⁇"}, {"type": "BPE"}),
)
KEYS = (
    *("model_type", "eos_token_id", "pad_token_id", "auto_map", "attn_implementation", "_attn_implementation", "dtype"),
    *("quantization_config", "text_config", "decoder", "num_labels", "id2label", "return_dict", "is_encoder_decoder"),
    *(
        "per_layer_config",
        "tokenizer_file",
        "vocab_file",
        "name_or_path",
        "chat_template",
        "tokenizer_class",
        "to_dict",
    ),
    *("eos_token", "bos_token", "pad_token", "unk_token", "padding", "truncation", "post_processor", "decoder", "type"),
    *("rope_parameters", "sliding_window", "layer_types", "vocab_size", "n_layer", "n_head", "hidden_size", "stoi"),
    *("vocabulary", "MAX_NUMBER_TOKEN", "activation", "block_size", "prompt", "answer", "category", "line"),
)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to three mutations; of JSON, half of the time its values."""
    try:
        tree = json.loads(content)
    except ValueError:
        tree = None
    for _ in range(draw.randint(1, 3)):
        if tree is not None and draw.random() < 0.7:
            tree = _mutated_tree(tree, draw)
            content = json.dumps(tree).encode("utf-8", "surrogatepass")
        else:
            content, tree = _mutated_bytes(content, draw), None
    return content


def _mutated_tree(tree: Any, draw: random.Random) -> Any:
    """The JSON value with one value, name or item inside it changed."""
    places = list(_places(tree))
    holder, key = draw.choice(places) if places and draw.random() < 0.97 else (None, None)
    if holder is None:
        return _value(draw)
    action = draw.random()
    if action < 0.6:
        holder[key] = _value(draw)
    elif action < 0.75:
        del holder[key]
    elif action < 0.8:
        holder[key] = _nested(draw.choice((10, 150, 400)))
    elif isinstance(holder, dict):
        holder[draw.choice(KEYS)] = _value(draw)
    else:
        holder.extend([_value(draw)] * draw.choice((1, 50)))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value; of long containers only the first."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items[:40]:
        yield tree, key
        yield from _places(value)


def _value(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(VALUES))


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """The bytes with some overwritten, cut, doubled, or put in."""
    if not content:
        return draw.randbytes(draw.choice((1, 8, 100)))
    start = draw.choice((0, draw.randrange(len(content)), draw.randrange(min(len(content), 64))))
    end = min(len(content), start + draw.choice((1, 4, 8, 64, 1000)))
    junk = draw.choice(
        (
            draw.randbytes(end - start), b"\x00" * (end - start), b"\xff" * (end - start), b"[" * 3000, b"{" * 3000,
            b"", b"\xc3\x28", b"\xef\xbb\xbf", b"\n", b"NaN", b"-", b'"', "⁇".encode() * 50, b"9" * 6000,
        )
    )  # fmt: skip
    return draw.choice((content[:start] + junk + content[end:], content[:start] + junk, content[:end], content * 2))
