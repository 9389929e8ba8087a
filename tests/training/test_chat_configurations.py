"""The shipped configurations for chats, whole, with tiny models in the places that their page names."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import TEMPLATE, WORDS, write_model

import bgrpo

STEPS = 20


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m bgrpo.tasks.chat`` and ``bgrpo reward-model`` would write."""
    folder = tmp_path_factory.mktemp("chats")
    encoder = TEMPLATE.replace("{{ bos_token }}", "")
    write_model(folder / "models" / "smollm2_135m", "llama", template=TEMPLATE, kind="causal", limit=96)
    write_model(folder / "models" / "reward_minilm", "bert", template=encoder, seed=4)
    write_model(folder / "models" / "minilm", "bert", kind="encoder", limit=96)
    (folder / "chat").mkdir()
    for name, first in (("prompts", 0), ("held_out_prompts", 60)):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"{WORDS[(first + i) % 90]} {WORDS[(7 * i) % 90]}"}],
                "answer": WORDS[i % 9],
                "speaker": f"s{first + i % 12}",
            }
            for i in range(60 if first == 0 else 8)
        ]
        (folder / "chat" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", ["reward_model", "composite"])
def test_a_shipped_configuration_runs_as_it_is(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    changes: dict[str, Any] = {
        "rollout": {"prompts_per_step": 4, "prompts_per_request": 4, "max_new_tokens": 5},
        "learner": {"threads": 1, "learning_rate": 1e-2},
        "tracking.enabled": False,
    }
    if name == "composite" and find_spec("profanity_check") is None:  # of the extra chat
        changes["reward.parts.safety.function"] = "reward_functions:length"
    run = bgrpo.train(config=name, overrides=changes, steps=STEPS, name=name, runs="runs", local=True, progress=False)
    steps = run.metrics()
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for part in run.config.reward.parts:
        assert all(step[f"part/{part}/failed"] == 0 and step[f"part/{part}/none"] < 1 for step in steps)
    table = run.table()
    assert "greedy_quality" in table and "sample_overlap" in table and "win rate" in table
    assert run.policy.tokenizer.chat_template and sum(step["groups_used"] for step in steps) > STEPS
