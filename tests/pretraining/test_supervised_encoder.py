"""Supervised training of encoder-decoders: a new T5 on dialogues with stories, then reinforcement learning from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import bgrpo
from bgrpo.config import PretrainConfig, build_config
from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy
from bgrpo.pretraining.pretrain import make_data, pretrain
from bgrpo.pretraining.supervised_lines import IGNORED, collate_for_encoder, tokenise
from bgrpo.tasks.base import load_task

WORDS = ["dog", "cat", "violin", "beach", "work", "night", "storm", "garden"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A task section; stories name the word that the persona likes."""
    folder = tmp_path_factory.mktemp("dialogue")
    stories = [{"title": word, "text": f"I love my {word}"} for word in WORDS]
    rows = [
        {"question": f"persona: i like my {word}. context:  Q: {number} ?", "answers": [word]}
        for number in range(6)
        for word in WORDS
    ]
    parts = {"stories": stories, "train": rows[:40], "validation": rows[40:44], "test": rows[44:]}
    for name, kept in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    task: dict[str, Any] = {"name": "dialogue", "options": {"corpus": str(folder / "stories.jsonl"), "n_context": 2}}
    return task | {name: {"file": str(folder / f"{name}.jsonl")} for name in ("train", "validation", "test")}


def config(task: dict[str, Any], **changes: Any) -> PretrainConfig:
    settings = {"encoder": True, "layers": 1, "heads": 2, "width": 32, "vocabulary": 400, "context": 64}
    settings |= {"batch_size": 8, "max_new_tokens": 8, "steps": 60, "validate_every": 30, "warmup_steps": 5}
    settings |= {"learning_rate": 1e-2, "threads": 1, "bf16": False, "task": task}
    return build_config(PretrainConfig, settings | changes, "test")


def test_a_new_t5_learns_resumes_and_is_a_policy(files: dict[str, Any], tmp_path: Path) -> None:
    records: list[dict[str, float]] = []
    out = pretrain(config(files), tmp_path / "run", "again", records.append)
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert len(losses) == 2 and losses[1] < losses[0] < 6
    policy = load_policy(str(out))
    card = (out / "README.md").read_text()
    assert "An encoder-decoder of" in card and "AutoModelForSeq2SeqLM" in card
    assert policy.tokenizer.convert_tokens_to_ids("<extra_id_0>") == 2 and policy.tokenizer("dog")["input_ids"][-1] == 0
    plain = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    assert plain.generation_config.decoder_start_token_id == policy.tokenizer.pad_token_id == 1
    ids = torch.tensor([[5, 6, 0]])
    logits = [model(input_ids=ids, decoder_input_ids=ids).logits for model in (plain, policy.model)]
    assert torch.equal(*logits)

    cut = tmp_path / "cut"
    half = config(files, steps=60)
    data = make_data(half)
    data.save(cut)
    from bgrpo.pretraining.pretrain import export_best, train

    asked = iter([*[False] * 30, True])
    train(half, cut, lambda record: None, should_stop=lambda: next(asked))
    train(half, cut, lambda record: None)
    again = load_policy(str(export_best(half, cut, "again")))
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), again.model.parameters(), strict=True))

    rewards = {"f1": ({"metric": "word_f1", "score_truncated": True}, 1.0)}
    run = bgrpo.train(
        out, config={"task": files, "rollout": {"prompts_per_step": 4, "max_new_tokens": 6}, "learner": {"threads": 1},
                     "evaluation": {"beam_widths": [2], "samples": 0}, "tracking.enabled": False},
        rewards=rewards, algorithm="grpo", group_size=3, steps=1, runs=tmp_path / "runs", name="rl", local=True,
        progress=False,
    )  # fmt: skip
    sample = run.samples()[0]
    assert len(sample.passages) == 2 and all("story title:" in text for text in sample.passages)
    assert not any("<extra_id_0>" in completion.text[:12] for completion in sample.completions)


def test_a_batch_for_an_encoder(files: dict[str, Any]) -> None:
    data = make_data(config(files))
    problems = load_task("dialogue", files["options"]).load(Path(files["train"]["file"])).problems
    lines = tokenise(problems, data.start.tokenizer)
    batch = collate_for_encoder(lines, np.array([0, 3]), start_token=1)
    for row in range(2):
        answer = batch["targets"][row][batch["targets"][row] != IGNORED].tolist()
        assert answer[0] == 2 and answer[-1] == 0
        assert batch["input_ids"][row, : 1 + len(answer)].tolist() == [1, *answer]
        assert batch["prompts"][row].tolist().count(-1) == 1 and batch["prompts"][row][-1] == 0
    assert (lines.longest_passages() < lines.prompt_lengths).all()


def test_what_does_not_fit_is_told(files: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"its longest passage has \d+ tokens: context=12 is too short"):
        make_data(config(files, context=12))
    with pytest.raises(UserError, match="encoder=True is of a new policy"):
        config(files, policy={"path": "x"}, layers=None, heads=None, width=None, vocabulary=None)
