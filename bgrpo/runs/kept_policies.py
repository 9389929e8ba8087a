"""Policies in the folders of runs: used again only as the runs wrote them, for their files have digests there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError, brief
from bgrpo.files import is_file
from bgrpo.runs.checkpoints import MARKER, describe_files, find_change, read_marker
from bgrpo.runs.run_folder import RunFolder

_KEY = "policy"


def forget_policy(folder: RunFolder) -> None:
    """Before the run's policy is written anew: nothing is known of it then."""
    folder.update(**{_KEY: None})


def record_policy(folder: RunFolder) -> None:
    """Keep the digests of the run's policy in ``run.json``."""
    folder.update(**{_KEY: describe_files(folder.policy)})


def refuse_changed(path: str | Path) -> None:
    """Refuse a policy in a run's folder, or in a checkpoint, that is not what the run wrote. All others pass.

    Raises:
        UserError: names the first file that differs.
    """
    try:
        policy = Path(os.path.realpath(Path(path).expanduser()))
    except (OSError, ValueError, RuntimeError):  # no path: refused where it is loaded
        return
    try:
        reason = _change(policy)
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = brief(error)
    if reason:
        raise UserError(
            f"policy {path}: {reason}: put back what the run wrote, or copy the folder elsewhere to use it as it is"
        )


def _change(policy: Path) -> str:
    if is_file(policy / MARKER):  # of a supervised run, whose checkpoints are policies
        return find_change(policy, read_marker(policy)["files"])
    if is_file(policy.parent / MARKER):
        of_all: dict[str, Any] = read_marker(policy.parent)["files"]
        prefix = f"{policy.name}/"
        return find_change(
            policy, {name.removeprefix(prefix): of_all[name] for name in of_all if name.startswith(prefix)}
        )
    if policy.name == "policy" and is_file(policy.parent / "run.json"):
        files = RunFolder(policy.parent).info().get(_KEY)
        return find_change(policy, files) if files else ""  # of an earlier bgrpo: nothing is known
    return ""
