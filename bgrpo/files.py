"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from bgrpo.errors import UserError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name only when the block ends well.

    It is written beside ``path``, synced to the disk and renamed; when the block raises, nothing stays and an older
    ``path`` is as it was.
    """
    with _unfinished(path) as handle, os.fdopen(handle, "w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all."""
    with _unfinished(path) as handle, os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[int]:
    """Handle of a file beside ``path``, which replaces that when the block ends well; the block closes the handle."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        yield handle
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path, option: str) -> None:
    """Make the folder of a file that is to be written, and refuse one that cannot be, before the work that fills it.

    Args:
        path: the file to be written.
        option: what the user gave it as, for the message.

    Raises:
        UserError: its folder cannot be made or written, or the path is a folder.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: the folder {path.parent} cannot be written ({error.strerror})") from error
