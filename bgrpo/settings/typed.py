"""What a scalar means is decided by the type of the key where it stands."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from bgrpo.errors import UserError, one_line
from bgrpo.settings.strict_yaml import NULLS, Plain, Tree, parse_yaml, plain_value
from bgrpo.settings.values import KeysOf, Section

MAX_SHOWN = 60
UNKNOWN = None
"""The type of a key that does not exist: its value is not looked at, the key is refused."""


def alternatives(annotation: Any) -> list[Any]:
    """The parts of a union, or the annotation alone; without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for item in get_args(annotation) for part in alternatives(item)]
    return [annotation]


def metadata(annotation: Any) -> Iterator[Any]:
    """What ``Annotated`` adds, also inside a union, and inside pydantic's ``Field``."""
    if get_origin(annotation) is Annotated:
        inner, *added = get_args(annotation)
        yield from metadata(inner)
        for item in added:
            yield from item.metadata if isinstance(item, FieldInfo) else [item]
    elif get_origin(annotation) in (Union, types.UnionType):
        for item in get_args(annotation):
            yield from metadata(item)


def annotation_of(info: FieldInfo) -> Any:
    """A field's annotation as it was written."""
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def is_section(annotation: Any) -> bool:
    """Whether it is a section's class."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def below(annotation: Any, key: str | int, *, marked: bool = True) -> Any:
    """The annotation of what lies at a key (dotted or not) or index; :data:`UNKNOWN` when there is nothing.

    Args:
        annotation: of a section, a mapping or a list.
        key: dotted name, or index.
        marked: follow :class:`KeysOf`, which says what users may write there; pydantic's own errors do not.
    """
    marks = [mark for mark in metadata(annotation) if isinstance(mark, KeysOf) and marked]
    if marks:
        return Any if marks[0].section is None else below(marks[0].section, key)
    for part in alternatives(annotation):
        origin, arguments = get_origin(part), get_args(part)
        if part is Any:
            return Any
        if origin is list and isinstance(key, int):
            return arguments[0]
        if origin is dict and isinstance(key, str):
            return arguments[1]
        if is_section(part) and isinstance(key, str):
            name, _, rest = key.partition(".")
            if name not in part.model_fields:
                return UNKNOWN
            found = annotation_of(part.model_fields[name])
            return reduce(below, rest.split("."), found) if rest else found
    return UNKNOWN


def takes_text(annotation: Any) -> bool:
    """Whether only text fits, or null."""
    parts = [part for part in alternatives(annotation) if part is not type(None)]
    return annotation is UNKNOWN or all(
        part is str or (get_origin(part) is Literal and all(isinstance(value, str) for value in get_args(part)))
        for part in parts
    )


def override_value(text: str, annotation: Any, where: str) -> Tree:
    """The value of an override. Where text is expected it is taken as it stands, unless it is in quotes.

    Raises:
        UserError: not YAML, where YAML is expected.
    """
    text = text.strip()
    if not takes_text(annotation):
        return parse_yaml(text, where)
    if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
        quoted = parse_yaml(text, where)
        return quoted if isinstance(quoted, str) else Plain(text)
    return Plain(text)


def settle(tree: Tree, annotation: Any, where: str, key: str = "") -> Any:
    """The tree with each plain scalar as what the type at its place makes of it. Nothing else is checked here.

    Raises:
        UserError: a scalar that is ambiguous or too large for a number.
    """
    if isinstance(tree, Plain):
        if takes_text(annotation):
            can_be_null = type(None) in alternatives(annotation)
            return None if tree in NULLS and (can_be_null or tree != "~") else str(tree)
        try:
            return plain_value(tree)
        except ValueError as error:
            raise UserError(f"{where}: {key}={one_line(tree, MAX_SHOWN)}: {error}") from None
    prefix = f"{key}." if key else ""
    if isinstance(tree, dict):
        return {name: settle(item, below(annotation, name), where, f"{prefix}{name}") for name, item in tree.items()}
    if isinstance(tree, list):
        return [settle(item, below(annotation, i), where, f"{prefix}{i}") for i, item in enumerate(tree)]
    return tree
