"""How much longer a tokenizer can make a text: replacements that feed replacements turn a word into terabytes."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from bgrpo.errors import UserError

MOST = 4096
"""Characters, or tokens, that one character may become. Real tokenizers replace single characters by a few."""

_TEXTS = ("single", "pair")  # what a template of a post-processor is for


def check_charsmaps(text: str) -> None:
    """Refuse a ``tokenizer.json`` with a table of characters that says it is larger than it is.

    The library reserves as much memory as the table says, up to 8 GiB, and dies where there is less.

    Raises:
        UserError: says so.
        Exception: the text is no JSON, or has another form.
    """
    if "precompiled_charsmap" not in text and "\\u" not in text:
        return
    for step in _steps(json.loads(text).get("normalizer")):
        if step.get("precompiled_charsmap"):
            table = base64.b64decode(step["precompiled_charsmap"])
            if int.from_bytes(table[:4], "little") > len(table):
                raise UserError("tokenizer.json: its precompiled_charsmap is damaged")


def check_growth(backend: Tokenizer) -> None:
    """Refuse a tokenizer whose normalizers, decoders or post-processors make texts out of all proportion.

    Raises:
        UserError: says which part, and by how much; or a special token is named that nothing describes.
    """
    parts = {"normalizer": backend.normalizer, "decoder": backend.decoder, "post_processor": backend.post_processor}
    for name, part in parts.items():
        if part is None:
            continue
        # Logarithms: the product of what thousands of replacements do is no float.
        growth = sum(math.log(factor) for step in _steps(json.loads(part.__getstate__())) for factor in _factors(step))
        if growth > math.log(MOST):
            raise UserError(
                f"tokenizer.json: its {name} can make a text 10^{growth / math.log(10):.1f} times as long; expected at "
                f"most {MOST:,} times"
            )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Every step of a part, those within sequences too."""
    if isinstance(part, dict):
        yield part
        for key in ("normalizers", "decoders", "processors"):
            for inner in part.get(key) or ():
                yield from _steps(inner)


def _factors(step: dict[str, Any]) -> Iterator[int]:
    """By how much each thing that a step does can multiply a text of one character."""
    if step["type"] == "Replace":
        replaced = step["pattern"].get("String", "")
        yield math.ceil(len(step["content"]) / len(replaced)) or 1 if replaced else 1 + len(step["content"])
    elif step["type"] == "Prepend":
        yield 1 + len(step["prepend"])
    elif step["type"] == "Precompiled":  # a table of texts, each ended by a zero, behind a trie and its length
        table = base64.b64decode(step["precompiled_charsmap"])
        texts = table[4 + int.from_bytes(table[:4], "little") :]
        yield max(1, *map(len, texts.split(b"\0")))
    elif step["type"] == "TemplateProcessing":
        lengths = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
        single, pair = ([each["SpecialToken"]["id"] for each in step[key] if "SpecialToken" in each] for key in _TEXTS)
        if unknown := set(single + pair) - lengths.keys():
            raise UserError(f"tokenizer.json: its post_processor names {min(unknown)!r}, which special_tokens lacks")
        yield max(1, sum(map(lengths.__getitem__, single)) + sum("Sequence" in each for each in step["single"]))
