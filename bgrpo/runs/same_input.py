"""What a run computes its result from, with digests: a run that goes on must find the same again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bgrpo.errors import UserError
from bgrpo.files import sha256
from bgrpo.policies.flat_weights import flatten_parameters
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class KnownInput:
    """Something that a run computes its result from: where it is, and the digest of what is there."""

    path: str
    digest: str


Inputs = dict[str, KnownInput]
"""By what it is for: ``policy``, ``reference``, or a key of the configuration."""


def record_input(folder: RunFolder, inputs: Inputs) -> None:
    """Keep digests of what a run computes its result from, in ``run.json``: inputs, and the files in ``data/``."""
    folder.update(inputs=_digests(folder, inputs))


def check_same_input(folder: RunFolder, inputs: Inputs) -> None:
    """Refuse to go on with a run from other input than it began with. What it has no digest of is not compared.

    Args:
        folder: of the run.
        inputs: as they are now.

    Raises:
        UserError: names what has changed.
    """
    saved, now = folder.info().get("inputs") or {}, _digests(folder, inputs)
    changed = [name for name in sorted(saved) if saved[name] != now.get(name)] if isinstance(saved, dict) else []
    if changed:
        where = inputs[changed[0]].path if changed[0] in inputs else folder.path / changed[0]
        raise UserError(
            f"run {folder.name} cannot be resumed: its {changed[0]} ({where}) is not what it was started with: put it "
            f"back, or start a new run"
        )


def _digests(folder: RunFolder, inputs: Inputs) -> dict[str, str]:
    found = {f"data/{path.name}": sha256(path) for path in sorted(folder.data.iterdir()) if path.is_file()}
    return found | {name: known.digest for name, known in inputs.items()}


def policy_input(policy: LoadedPolicy) -> KnownInput:
    """A policy as an input."""
    return KnownInput(policy.path, policy_digest(policy))


def policy_digest(policy: LoadedPolicy) -> str:
    """Of a policy's weights and vocabulary."""
    digest = hashlib.sha256(flatten_parameters(policy.model).data)
    digest.update(repr(sorted(policy.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
