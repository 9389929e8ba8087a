"""Folders of models changed by hand: what may stand in one that came from elsewhere, and what must be refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bgrpo.errors import UserError

Change = Callable[[Path], Any]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every name looked up and every connection asked for; none is made."""
    asked: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(str(arguments))
        raise OSError("no network in this test")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield asked
    assert asked == []


def in_parts(folder: Path) -> None:
    """The weights of a folder in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def says(file: str, **changes: Any) -> Change:
    """The JSON file with these keys set."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


def index(name: Any) -> Change:
    """Weights in parts, whose index names one file otherwise; the file is there, outside the folder too."""

    def change(folder: Path) -> None:
        in_parts(folder)
        path = folder / "model.safetensors.index.json"
        tree = json.loads(path.read_text())
        first = min(tree["weight_map"].values())
        for copy in ("weights.bin", "../weights.bin", "../other.safetensors", ".hidden.safetensors"):
            shutil.copy(folder / first, folder / copy)
        named = {key: name if file == first else file for key, file in tree["weight_map"].items()}
        path.write_text(json.dumps({"weight_map": named}))

    return change


def becomes(file: str, make: Callable[[Path], Any]) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def refusal(folder: Path, load: Callable[[str], Any]) -> str:
    with pytest.raises(UserError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    return message
