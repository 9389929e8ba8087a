"""What a learner begins with: the reference of the KL is the policy that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from learner_cases import train_config
from tiny_t5 import write_t5

from bgrpo.learning.starting_point import starting_point
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer


@pytest.mark.parametrize("kind", ["causal", "with an adapter", "with an encoder"])
def test_a_reference_of_its_own(kind: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(0, 0)
    for name, seed in (("policy", 1), ("other", 2)):
        if kind == "with an encoder":
            write_t5(tmp_path / name, seed=seed)
        else:
            save_policy(build_policy(tokenizer, 1, 2, 16, 64, seed=seed), tokenizer, tmp_path / name)
    learner: dict[str, Any] = {"reference": {"path": str(tmp_path / "other")}}
    if kind == "with an adapter":
        learner["lora"] = {"rank": 2}
    config = train_config(policy={"path": str(tmp_path / "policy")}, learner=learner)
    _, reference = starting_point(config, None, None)
    weights = [flatten_parameters(load_policy(str(tmp_path / name)).model) for name in ("policy", "other")]
    assert reference is not None and (flatten_parameters(reference) == weights[1]).all()
    assert (weights[0] != weights[1]).any()
    without = train_config(policy={"path": str(tmp_path / "policy")}, learner=learner | {"reference": {}})
    _, reference = starting_point(without, None, None)
    assert reference is None or (flatten_parameters(reference) == weights[0]).all()
