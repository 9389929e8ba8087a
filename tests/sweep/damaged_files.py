"""Damage to files that hold JSON, YAML or lines of JSON: of bytes, and of what the file says."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

STRANGE: list[Any] = [
    None, True, False, -1, 3, 10**20, 10**400, 1e308, -1e308, 0.5, float("nan"), float("inf"), "", "x", "é\u2028\x00",
    "../..", "a/b", "a" * 300, "[/b]", "\ud800", "12", [], {}, [1, "a", None], [[]], {"a": {"b": []}}, [None] * 3,
    {"": 1}, "=1+1",
]  # fmt: skip
DEEP = "[" * 100_000


def damage(path: Path, rng: random.Random) -> None:
    """Damage one file in one way, drawn from ``rng``."""
    kind = rng.choice(
        [
            *["value"] * 10,
            "bytes",
            "bytes",
            "cut",
            "cut",
            "empty",
            "gone",
            "folder",
            "deep",
            "binary",
            "twice",
            "pipe",
            "pipe",
            "device",
        ]
    )
    if kind == "value" and path.suffix in (".json", ".yaml", ".jsonl"):
        _change_value(path, rng)
    elif kind == "bytes":
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.choice(b"\x00\xff\"{}[]:,-\n\t 9eE.\\'&*!|>%@`#")
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "gone":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "device":
        path.unlink()
        path.symlink_to("/dev/zero")
    elif kind == "deep":
        path.write_text(rng.choice([DEEP, f'{{"trials": {DEEP}', f'{{"step": 1, "x": {DEEP}}}\n', f"arms: {DEEP}"]))
    elif kind == "binary":
        path.write_bytes(rng.randbytes(200) + b"\n")
    else:
        path.write_bytes(path.read_bytes() * 2)


def _change_value(path: Path, rng: random.Random) -> None:
    if path.suffix == ".jsonl":
        lines = path.read_text("utf-8").splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(_changed(json.loads(lines[number]), rng))
        text = "\n".join(lines) + "\n"
    elif path.suffix == ".json":
        text = json.dumps(_changed(json.loads(path.read_text("utf-8")), rng))
    else:
        text = yaml.dump(_changed(yaml.safe_load(path.read_text("utf-8")), rng))
    path.write_text(text, "utf-8", errors="surrogatepass")


def _changed(tree: Any, rng: random.Random) -> Any:
    """The tree with one of its values replaced, removed, or another put beside it."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []
    _collect(tree, places)
    holder, key = rng.choice(places)
    action: Callable[[], Any] = rng.choice(
        [
            lambda: holder.__setitem__(key, rng.choice(STRANGE)),
            lambda: holder.__setitem__(key, rng.choice(STRANGE)),
            lambda: holder.__delitem__(key),
            lambda: (
                holder.update({"new": rng.choice(STRANGE)}) if isinstance(holder, dict) else holder.append(holder[key])
            ),
        ]
    )
    action()
    return rng.choice([tree] * 20 + STRANGE)


def _collect(tree: Any, places: list[tuple[Any, Any]]) -> None:
    """Every (container, key) of a tree; of a long list the first and the last few."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    for key in [*keys[:20], *keys[20:][-2:]]:
        places.append((tree, key))
        _collect(tree[key], places)
