"""Small sweep configurations for the tests."""

from __future__ import annotations

from typing import Any

from bgrpo.config import build_config
from bgrpo.sweep.config_keys import merge
from bgrpo.sweep.sweep_config import SweepConfig

RATES = {"learner.learning_rate": {"values": [1e-5, 1e-4]}}


def sweep_config(**tree: Any) -> SweepConfig:
    """Two arms, two learning rates, validations."""
    default: dict[str, Any] = {"space": RATES, "searcher": "grid", "train": {"evaluation": {"every": 5}}}
    return build_config(SweepConfig, merge(default, tree) if "space" not in tree else default | tree, "test")
