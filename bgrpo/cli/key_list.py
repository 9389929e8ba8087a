"""What ``bgrpo options`` prints: the keys of a configuration."""

from __future__ import annotations

import json

from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.errors import UserError
from bgrpo.settings.key_table import Key, all_keys, keys_of, known_keys
from bgrpo.settings.messages import unknown_key
from bgrpo.settings.values import Section

MAX_NAME = 44  # a longer key and default move the rest of their line


def list_keys(command: str, prefix: str, as_json: bool) -> int:
    """Print every key of a command's configuration that begins with ``prefix``, a line each."""
    keys = [key for key in _keys(command) if key.name.startswith(prefix)]
    if not keys:
        raise UserError(unknown_key(prefix, _tree(command)))
    if as_json:
        print(json.dumps([key._asdict() for key in keys]))
        return 0
    for key in keys:
        print(f"{f'{key.name}={key.default}':{MAX_NAME}} {key.description} ({key.takes})")
    return 0


def is_key(name: str, command: str) -> bool:
    """Whether the configuration of a command has such a key."""
    return name in known_keys(_tree(command))


def _tree(command: str) -> type[Section]:
    from bgrpo.sweep.sweep_config import SweepConfig

    trees: dict[str, type[Section]] = {"train": TrainConfig, "pretrain": PretrainConfig, "sweep": SweepConfig}
    return trees[command]


def _keys(command: str) -> list[Key]:
    if command != "sweep":
        return all_keys(_tree(command))
    from bgrpo.sweep.sweep_config import Arm, SpaceEntry

    parts = [*keys_of(Arm, "arms.NAME.", None), *keys_of(SpaceEntry, "space.KEY.", None)]
    return [*all_keys(_tree(command)), *parts]
