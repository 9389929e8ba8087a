"""The page "From Python": its code runs as it stands, with a tiny policy where it names a large one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from_python.md"
FEWER = {"evaluation.samples": 0, "evaluation.beam_widths": [2], "tracking.enabled": False}
LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_reader_of_bytes(folder: Path) -> None:
    """A random policy that reads and writes any text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_reader_of_bytes(tmp_path / "tiny")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5 and LARGE in blocks[0]
    assert len([line for line in blocks[0].splitlines() if line]) <= 10
    changes = [
        (LARGE, "tiny"),
        ("steps=20,", f"steps=2, config={FEWER}, name='my_run',"),
        ('"task.test.count": 50', '"task.test.count": 4'),
        ("steps=200", "steps=3, local=True"),
    ]
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        for stands, runs in changes:
            block = block.replace(stands, runs)
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        names |= runpy.run_path(str(script), init_globals=names, run_name="__main__")
    told = capsys.readouterr().out
    assert "greedy_reward" in told and "beam-rank score" in told
    assert names["run"].steps == 3 and names["run"].name == "my_run"
    assert set(names["rewards"]) == {"quality", "short", "variety"}
    assert len(names["groups"][0].completions) == 5
