"""A tiny policy with a chat template, and problems in words that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import TEMPLATE, WORDS, write_model


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("api") / "policy", "llama", template=TEMPLATE, kind="causal", limit=64, seed=5
    )


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"{WORDS[i]} {WORDS[i + 1]}", "wanted": WORDS[i % 7], "category": f"c{i % 2}"} for i in range(24)
    ]


@pytest.fixture
def small() -> dict[str, Any]:
    """Configuration keys of a run of seconds."""
    return {
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 5, "keep_samples": 1},
        "learner": {"warmup_steps": 0, "threads": 1, "learning_rate": 1e-2},
        "evaluation": {"beam_widths": [2], "samples": 0},
        "tracking.enabled": False,
    }
