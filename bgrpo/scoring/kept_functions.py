"""Reward functions that no module holds, of a notebook or a script: a run keeps them by value in its own folder.

A configuration names one as ``kept:NAME``: the file ``given/NAME.pkl`` in the run's folder. Only its owner may read and
write it, and ``run.json`` says its digest: any other file is refused, so nothing is unpickled but what this user's run
has written.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError, summary
from bgrpo.files import parse_object, readable_file

PREFIX = "kept:"
FOLDER, SUFFIX = "given", ".pkl"
DIGESTS = "kept"
"""Key of ``run.json``: file -> digest."""

_NAME = re.compile(r"[A-Za-z]\w{0,60}", re.ASCII)
_MOST_BYTES = 64 * 2**20
_MOST_RECORD_BYTES = 16 * 2**20


def module_name(function: Callable[..., Any]) -> str | None:
    """``module:function``, where another process finds this very function so; None where it does not."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    try:
        has_file = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):  # a module that was made at run time has no spec
        return None
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if has_file and found is function else None


def keep_function(function: Callable[..., Any], folder: Path, name: str) -> str:
    """Write a function by value, with what it refers to in its own module.

    Args:
        function: anything that can be called.
        folder: of the run.
        name: of the part.

    Returns:
        The digest of the file, for ``run.json``: under :data:`DIGESTS`, by the name of the part.

    Raises:
        UserError: it cannot be written down, or is too large.
    """
    import cloudpickle

    try:
        content: bytes = cloudpickle.dumps(function)
    except Exception as error:  # whatever it refers to may raise anything
        raise UserError(
            f"reward {name!r}: {function!r:.80} cannot be written down for the processes that call it "
            f"({summary(error)}): put it into a module, or make what it needs inside it"
        ) from error
    if len(content) > _MOST_BYTES:
        raise UserError(
            f"reward {name!r}: {function!r:.80} refers to {len(content) / 2**20:.0f} MiB of objects, expected at most "
            f"{_MOST_BYTES / 2**20:.0f}: put it into a module that loads them"
        )
    path = _path(folder, name)
    path.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def kept_function(reference: str, runs: str, run: str | None) -> tuple[str, str]:
    """Where ``kept:NAME`` lies, and what its digest must be.

    Args:
        reference: as the configuration names it.
        runs: ``run.dir``.
        run: ``run.name``.

    Raises:
        UserError: this run keeps no such function.
    """
    name = reference.removeprefix(PREFIX)
    path = _path(Path(runs) / (run or ""), name)
    unknown = f"{reference}: this run keeps no such function; name one as 'module:function'"
    if run is None or not _NAME.fullmatch(name):
        raise UserError(unknown)
    try:
        record = parse_object(readable_file(path.parent.parent / "run.json", _MOST_RECORD_BYTES).read_bytes())
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{unknown} ({error})") from error
    digests = record.get(DIGESTS)
    digest = digests.get(name) if isinstance(digests, dict) else None
    if not isinstance(digest, str):
        raise UserError(unknown)
    return str(path.absolute()), digest


def load_function(path: Path, digest: str) -> Callable[..., Any]:
    """The function that :func:`keep_function` wrote. It runs what the file holds, once it is known to be that file.

    Raises:
        UserError: another file, or one that others may have written, or whose modules are not here.
    """
    import cloudpickle

    what = f"{path}: the run's own function cannot be used"
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise UserError(f"{what}: others than its owner, this user, may read or write it")
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{what}: it is not what the run wrote (its digest differs from that in run.json)")
    try:
        function = cloudpickle.loads(content)
    except Exception as error:  # a module may be missing, or raise anything when it is imported
        raise UserError(f"{what}: {summary(error, __file__)}") from error
    if not callable(function):
        raise UserError(f"{what}: it holds a {type(function).__name__}, not a function")
    return function


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}{SUFFIX}"
