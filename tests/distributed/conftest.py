"""What the tests of the rollout service share."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_play import TOKENIZER, policy

from bgrpo.policies.io import save_policy


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy with other weights than any that the tests publish."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(policy(0), TOKENIZER, folder)
    return folder
