"""A file of weights that is not whole is told in words: which file, what is wrong, what would be right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_folders import network
from safetensors.torch import save_file

from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.model_files import weight_shapes
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

__all__ = ["network"]
LIBRARY = ("deserializ", "incomplete metadata", "HeaderToo", "InvalidHeader", "MetadataIncomplete")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, path, metadata={"format": "pt"})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        weight_shapes((path,))
    text = str(refused.value)
    assert path.name in text and not any(word in text for word in LIBRARY), text
    return text


def test_a_whole_file_has_its_shapes(whole: Path) -> None:
    assert weight_shapes((whole,)) == {"a": (6,), "b": (2, 3)}


def test_a_file_that_ends_anywhere_was_cut_short(whole: Path) -> None:
    content = whole.read_bytes()
    for length in range(len(content)):
        whole.write_bytes(content[:length])
        told = refusal(whole)
        assert f" has {length:,} bytes" in told or "first bytes" in told
        assert "was cut short; copy it again" in told or length == 8


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


OTHERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "more": (lambda content: content + b"\0", "something was added"),
    "a pointer": (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    "a pickle": (lambda content: b"PK\x03\x04" + content, "a pickle"),
    "a page": (lambda content: b"<!DOCTYPE html><html>", "a web page"),
    "zeros": (lambda content: bytes(len(content)), "no safetensors file"),
    "text": (lambda content: b"not found, sorry, and so on", "no safetensors file"),
    "no JSON": (lambda content: header("{'a': 1}") + content, "its header is damaged"),
    "a list": (lambda content: header('{"a": [1]}') + content, "its header is damaged"),
    "no offsets": (lambda content: header('{"a": {"dtype": "F32"}}'), "its header is damaged"),
    "text for an offset": (lambda content: header(json.dumps({"a": {"data_offsets": [0, "9"]}})), "is damaged"),
    "deep": (lambda content: header('{"a": ' + "[" * 100_000), "its header is damaged"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_such_file_is_called_by_its_name(kind: str, whole: Path) -> None:
    change, told = OTHERS[kind]
    whole.write_bytes(change(whole.read_bytes()))
    assert told in refusal(whole)


def test_bytes_of_the_header_that_changed_are_told_or_mean_the_same(whole: Path) -> None:
    content = whole.read_bytes()
    for position in range(8, 8 + int.from_bytes(content[:8], "little")):
        changed = bytearray(content)
        changed[position] ^= 4
        whole.write_bytes(changed)
        try:
            weight_shapes((whole,))
        except UserError as error:
            assert whole.name in str(error) and "\n" not in str(error)


def test_the_folder_is_named_too(tmp_path: Path, network: list[str]) -> None:
    tokenizer = build_tokenizer(0, 0)
    folder = tmp_path / "policy"
    save_policy(build_policy(tokenizer, 1, 2, 8, 16, 0), tokenizer, folder)
    shutil.copyfile(folder / "model.safetensors", tmp_path / "whole")
    (folder / "model.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"^policy {folder}: model.safetensors has .* bytes, .* cut short"):
        load_policy(str(folder))
