"""A real sweep that is as small as one can be, on the shipped policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bgrpo.config import build_config
from bgrpo.sweep.config_keys import merge
from bgrpo.sweep.sweep_config import SweepConfig


def tiny_sweep(runs: Path, name: str, **tree: Any) -> SweepConfig:
    """BGRPO and GRPO; few steps on few problems, validated after each step."""
    default: dict[str, Any] = {
        "base": "quickstart",
        "confirm_seeds": 1,
        "budget": {"kind": "steps", "amount": 2},
        "run": {"dir": str(runs), "name": name},
        "train": {
            "task": {"train": {"count": 60}, "validation": {"count": 8}, "test": {"count": 6}},
            "rollout": {"actors": 1, "prompts_per_step": 2, "prompts_per_request": 2, "group_size": 4},
            "learner": {"threads": 1, "warmup_steps": 0, "max_kl": 1e6},
            "evaluation": {"every": 1, "problems": 8, "beam_widths": [1], "samples": 0},
            "checkpoint": {"every": 1},
        },
    }
    return build_config(SweepConfig, merge(default, tree), "test")
