"""Where the files of an installed package lie."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from bgrpo.errors import UserError


def package_folder(module: str, package: str) -> Path:
    """Folder of a package, which is not imported: it need not run, nor have what it depends on.

    Args:
        module: its import name.
        package: its name in the package index, for the message.

    Raises:
        UserError: it is not installed.
    """
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: pip install --no-deps {package}")
    return Path(found.submodule_search_locations[0])
