"""Files and folders that are complete or absent: written beside, synced to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from bgrpo.errors import UserError, one_line

UNFINISHED = ".writing-"
"""Names of what is being written start so, and of what a killed writer left."""

SEAL = "crc32"
_SEALED = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\s*\Z')
_SEALED_YAML = re.compile(r"# crc32 of what follows: ([0-9a-f]{8})\n")

NOT_A_FILE = "Is a pipe, socket or device"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for what is written."""
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
LOST = (*_DENIED, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.EIO)
"""What it says where a path may not be read or written, leads nowhere, or its disk or server has gone."""
NO_ROOM = "what is to be written has no room ({}): free some space, then go on from the last complete checkpoint"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for the block to make a file or folder at, which takes the name when the block ends well.

    Everything is synced to the disk before. When the block raises, nothing stays and an older ``path`` is as it was. A
    folder takes the place of an older one by two renames: a process killed between them leaves the name free.

    Raises:
        OSError: the disk is full, or the folder of ``path`` is absent or cannot be written.
    """
    with tempfile.TemporaryDirectory(
        prefix=f"{UNFINISHED}{path.name}-", dir=path.parent, ignore_cleanup_errors=True
    ) as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        yield new
        for part in (new, *new.rglob("*")):
            sync(part)
        if new.is_dir() and path.exists():
            path.rename(old)
        try:
            new.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name only when the block ends well, see :func:`atomic_path`."""
    with atomic_path(path) as new, new.open("w", encoding="utf-8") as file:
        yield file


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, see :func:`atomic_path`."""
    with atomic_path(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none, or nested deeper than Python's parser goes.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for what can be no path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def seal(text: str) -> str:
    """The text of a JSON object with a checksum of it as its last key: whatever changes it later is noticed.

    Files and lines of files that are only read again, and whose numbers all look alike, are written so.
    """
    body = text.rstrip().removesuffix("}")
    return f'{body}, "{SEAL}": "{zlib.crc32(body.encode()):08x}"}}'


def unseal(text: str | bytes) -> bytes:
    """What :func:`seal` was given; a text without checksum, as an earlier bgrpo wrote, is as it is.

    Raises:
        ValueError: it is not what was written.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not (found := _SEALED.search(content)):
        return content
    body = content[: found.start()]
    if zlib.crc32(body) != int(found[1], 16):
        raise ValueError(f"it is not what was written: its checksum differs (if the change was meant, remove {SEAL})")
    return body + b"}"


def seal_yaml(text: str) -> str:
    """As :func:`seal`, for YAML: a first line that is a comment, so that a file that was cut off is noticed too."""
    return f"# {SEAL} of what follows: {zlib.crc32(text.encode()):08x}\n{text}"


def unseal_yaml(text: str) -> str:
    """What :func:`seal_yaml` was given; a text without checksum is as it is.

    Raises:
        ValueError: it is not what was written.
    """
    if not (found := _SEALED_YAML.match(text)):
        return text
    body = text[found.end() :]
    if zlib.crc32(body.encode("utf-8", "surrogatepass")) != int(found[1], 16):
        raise ValueError("it is not what was written: its checksum differs (if the change was meant, remove line 1)")
    return body


def open_file(path: Path) -> BufferedReader:
    """A file to read. What stands in its place may be anything, and is not waited for.

    Raises:
        OSError: it is absent, cannot be read, or a folder, pipe, socket or device.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def open_to_append(path: Path) -> TextIO:
    """A text file to add to, made where there is none; see :func:`open_file`.

    Raises:
        OSError: it cannot be written, or is a folder, pipe, socket or device.
    """
    return os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")


def _opened(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)  # opening a pipe would wait for its other end
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise OSError(errno.EINVAL, NOT_A_FILE, str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "Is a directory" if stat.S_ISDIR(mode) else NOT_A_FILE, str(path))
    return descriptor


def read_file(path: Path) -> bytes:
    """Content of a file, see :func:`open_file`."""
    with open_file(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Digest of a file's content, see :func:`open_file`."""
    with open_file(path) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def readable_file(path: Path, most_bytes: int) -> Path:
    """The path, once it is known to be a file worth opening: a regular one, and not larger than ``most_bytes``.

    Pipes, devices and folders are refused from their names alone: opening a pipe waits, and a device has no end.

    Raises:
        UserError: it is absent, cannot be looked at, is something else than a file, or too large.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{one_line(str(path))}: cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "Is a directory" if stat.S_ISDIR(found.st_mode) else NOT_A_FILE
        raise UserError(f"{path}: cannot be read: {kind}, expected a file")
    if found.st_size > most_bytes:
        raise UserError(f"{path}: has {found.st_size:,} bytes, expected at most {most_bytes:,}")
    return path


def check_target(path: Path, option: str, *, overwrite: bool = True) -> None:
    """Make the folder of a file that is to be written, and refuse one that cannot be, before the work that fills it.

    Args:
        path: the file to be written.
        option: what the user gave it as, for the message.
        overwrite: whether a file that is there may be replaced.

    Raises:
        UserError: its folder cannot be made or written, the path is a folder, or a file that must stay.
    """
    if os.path.isdir(path):  # noqa: PTH112 raises nothing, whatever the path
        raise UserError(f"{option} {path}: is a folder; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{option} {path}: is there already; give another name, or --overwrite to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: the folder {path.parent} cannot be written ({error.strerror})") from error
