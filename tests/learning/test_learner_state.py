"""A checkpoint that somebody tampered with: what it holds besides numbers is refused, and not run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from bgrpo.errors import UserError
from bgrpo.learning.learner_state import load_learner_state


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._path,)


def _load(checkpoint: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    load_learner_state(checkpoint, optimizer, LambdaLR(optimizer, lambda step: 1.0))


def test_a_malicious_optimizer_file_is_refused_and_not_run(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    torch.save({"optimizer": Payload(owned), "scheduler": {}}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt: holds no optimizer state, or more than that"):
        _load(tmp_path)
    assert not owned.exists()
    torch.load(tmp_path / "optimizer.pt", weights_only=False)
    assert owned.exists(), "the file was harmless: this test proves nothing"


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_optimizer_file_is_a_users_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "optimizer.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"optimizer\.pt: .*remove this checkpoint"):
        _load(tmp_path)
