"""Paths as users type them."""

from __future__ import annotations

import os

MAX_PATH_BYTES, MAX_NAME_BYTES = 4095, 255  # of Linux


def expanded(path: str) -> str:
    """A path as a user may type it: ``~`` is the home folder. The one place for it, for keys and options alike.

    Raises:
        ValueError: no such user, or no path can be so long.
    """
    full = os.path.expanduser(path)  # noqa: PTH111 pathlib raises where there is no such user
    if full.startswith("~") and not os.path.lexists(full):
        raise ValueError(f"{path.partition('/')[0]} is no user's home folder here")
    size = len(os.fsencode(full))
    if (
        "\0" in full
        or size > MAX_PATH_BYTES
        or any(len(os.fsencode(name)) > MAX_NAME_BYTES for name in full.split("/"))
    ):
        raise ValueError("no file can have such a path")
    return full
