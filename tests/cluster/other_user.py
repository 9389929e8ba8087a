"""What another user of this machine can do to files, tried as one: needs root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

NOBODY = 65534
ATTEMPTS = {
    "list": 'ls -A "$1"',
    "enter": 'cd "$1"',
    "make": 'touch "$1/made"',
    "rename": 'mv "$1" "$1.moved"',
    "delete": 'rm -rf "$1" && [ ! -e "$1" ]',
    "read": 'cat "$1"',
    "write": 'echo >> "$1"',
}
ON_FOLDERS, ON_FILES = ("list", "enter", "make", "rename", "delete"), ("read", "write", "rename", "delete")


def what_another_user_can_do(path: Path) -> list[str]:
    """Names of :data:`ATTEMPTS` that succeed on a file or folder, the destructive ones last."""
    if os.getuid() != 0:
        pytest.skip("only root can try as another user")
    return [name for name in (ON_FOLDERS if path.is_dir() else ON_FILES) if _succeeds(ATTEMPTS[name], path)]


def _succeeds(script: str, path: Path) -> bool:
    tried = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(path)], cwd="/", user=NOBODY, group=NOBODY, extra_groups=[],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=240,
    )  # fmt: skip
    return tried.returncode == 0
