"""Where a model is: in the package, a folder, the Hugging Face Hub's cache, or nowhere, which one line says at once."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from bgrpo.errors import UserError, one_line

SHIPPED_POLICY = Path(__file__).resolve().parents[1] / "assets" / "policy"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_LIMIT_S = 10.0
_MOST_NAMES = 1000  # of a folder's entries that a mistyped name is compared with
_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def find_policy(path: str, what: str = "policy") -> Path:
    """The folder that ``path`` names; a model of the Hub is brought into the local cache, safetensors only.

    What looks like a path (``~``, ``./``, more than one slash, a folder here of the first part's name, or a near miss
    of a model that is here) is never looked for on the Hub.

    Args:
        path: ``shipped``, a directory, or a model id.
        what: begins messages: the kind of model that is looked for.

    Raises:
        UserError: there is no such folder, or no such model, or the Hub cannot be reached.
    """
    shown = f"{what} {one_line(path)}"
    if path == "shipped":
        if not SHIPPED_POLICY.is_dir():
            raise UserError(f"{shown}: {SHIPPED_POLICY} is missing; install the package again, or give a directory")
        return SHIPPED_POLICY
    try:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise UserError(f"{shown}: is a file; expected a directory with config.json and model.safetensors")
        hint = _near_miss(path, folder)
        is_hub_id = _HUB_ID.fullmatch(path) and len(path) <= 96 and not ("/" in path and Path(path).parent.exists())
    except (OSError, ValueError, RuntimeError) as error:  # names that no file can have, users without a home
        raise UserError(f"{shown}: is not the name of a directory: {one_line(str(error))}") from error
    if hint:
        raise UserError(f"{shown}: no such directory; did you mean {hint}?")
    if not is_hub_id:
        raise UserError(f"{shown}: no such directory, and not a model id of the Hugging Face Hub (owner/name)")
    return _from_hub(path, what)


def absolute_policy(path: str) -> str:
    """What processes in other folders, and of other users, find the same policy by; a model id stays."""
    try:
        folder = Path(path).expanduser()
        return str(folder.absolute()) if folder.is_dir() else path
    except (OSError, ValueError, RuntimeError):  # refused where it is loaded
        return path


def is_policy(folder: Path) -> bool:
    """Whether a folder holds what could be a policy, by the names of its files."""
    configured = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return configured and any(folder.glob("*.safetensors"))


def _near_miss(path: str, folder: Path) -> str:
    """``shipped``, or a policy that is here, if it could have been meant; else nothing."""
    if _nearest(path, ["shipped"]):
        return "shipped"
    here = folder
    missing: list[str] = []
    while not here.is_dir() and here != here.parent:
        here, missing = here.parent, [here.name, *missing]
    if not missing:
        return ""
    names = [entry.name for entry in itertools.islice(here.iterdir(), _MOST_NAMES)]
    for name in _nearest(missing[0], names):
        meant = here.joinpath(name, *missing[1:])
        for found in (meant, meant / "policy"):
            if is_policy(found):
                return str(found)
    return ""


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name[:200], list(names), n=3, cutoff=0.75)


def _from_hub(model_id: str, what: str) -> Path:
    """One question to the Hub without repetitions, then the files; what was fetched before serves where it is away."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # of the HTTP library that this version uses
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(model_id, timeout=_HUB_LIMIT_S)
        files = [file.rfilename for file in info.siblings or []]
        wanted = [*_WANTED, *_weight_files(files)]
        return Path(snapshot_download(model_id, revision=info.sha, allow_patterns=wanted, etag_timeout=_HUB_LIMIT_S))
    except GatedRepoError as error:
        raise UserError(
            f"{what} {model_id}: the Hugging Face Hub asks for its licence to be accepted on its page, and for a token"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what} {model_id}: no such directory here, and the Hugging Face Hub has no such model (or it is private: "
            f"set HF_TOKEN)"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        try:
            return Path(snapshot_download(model_id, local_files_only=True))
        except LocalEntryNotFoundError:
            raise UserError(
                f"{what} {model_id}: no such directory here, and the Hugging Face Hub cannot be asked: "
                f"{one_line(str(error)) or type(error).__name__}"
            ) from error


def _weight_files(files: list[str]) -> list[str]:
    """Of a repository's files, those of one copy of the weights."""
    if "model.safetensors" in files:
        return ["model.safetensors"]
    shards = [file for file in files if re.fullmatch(r"model-[\w-]+\.safetensors", file)]
    return ["model.safetensors.index.json", *shards]
