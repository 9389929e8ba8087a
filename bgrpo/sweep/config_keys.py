"""Dotted keys and nested trees of configuration values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgrpo.runs.run_folder import flatten


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """A tree from keys that are dotted, nested, or both; a nested value wins over a dotted one of the same key."""
    tree: dict[str, Any] = {}
    for key, value in sorted(values.items(), key=lambda item: "." not in item[0]):  # dotted ones first
        value = nest(value) if isinstance(value, Mapping) else value
        for section in reversed(key.split(".")):
            value = {section: value}
        tree = merge(tree, value)
    return tree


def merge(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with the values of ``over`` laid over it, section by section."""
    merged = dict(tree)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def flat_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a tree whose keys may be dotted too."""
    return flatten(nest(values))


def is_within(key: str, section: str) -> bool:
    """True for the section itself and for everything in it."""
    return key == section or key.startswith(f"{section}.")
