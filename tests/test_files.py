"""Files that are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bgrpo.errors import UserError
from bgrpo.files import atomic_file, check_target, write_atomically


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_can_be_read_by_all(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file:
        file.write("⁇")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text("utf-8") == "⁇"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_targets_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    check_target(tmp_path / "new", "--out")
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"
    with pytest.raises(UserError, match=r"--out .*is a folder"):
        check_target(tmp_path, "--out")
    check_target(tmp_path / "made" / "too" / "file", "--out")
    assert (tmp_path / "made" / "too").is_dir()
    with pytest.raises(UserError, match="cannot be written"):
        check_target(Path("/proc/file"), "--out")
