"""The keys of a configuration: type with bounds, default and description, for messages, ``bgrpo options`` and pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel

from bgrpo.settings.typed import alternatives, annotation_of, is_section, metadata
from bgrpo.settings.values import Section


class Key(NamedTuple):
    """One key that takes a value."""

    name: str  # dotted
    takes: str  # in words, with bounds
    default: str  # as it would be typed
    description: str


def sections(
    section: type[Section], prefix: str = "", values: BaseModel | None = None
) -> Iterator[tuple[str, type[Section], BaseModel | None]]:
    """(dotted prefix, class, the defaults that stand in its parent) of a section and everything inside it."""
    yield prefix, section, values
    for name, info in section.model_fields.items():
        if is_section(info.annotation):
            yield from sections(info.annotation, f"{prefix}{name}.", getattr(values, name, info.default))  # type: ignore[arg-type]


def keys_of(section: type[Section], prefix: str, values: BaseModel | None) -> list[Key]:
    """The keys of one section, without those of the sections inside it; see :func:`sections`."""
    return [
        Key(
            f"{prefix}{name}",
            describe(annotation_of(info)),
            _shown(getattr(values, name, info.get_default(call_default_factory=True))),
            info.description or "",
        )
        for name, info in section.model_fields.items()
        if not is_section(info.annotation)
    ]


def all_keys(section: type[Section]) -> list[Key]:
    """Every key of a tree that takes a value, in order."""
    return [key for prefix, part, values in sections(section) for key in keys_of(part, prefix, values)]


def known_keys(section: type[Section]) -> list[str]:
    """Every dotted key of a tree, sections included."""
    names = [(prefix, name) for prefix, part, _ in sections(section) for name in part.model_fields]
    return [prefix + name for prefix, name in names]


def describe(annotation: Any) -> str:
    """What a key takes, in words: ``a whole number from 1 to 1024, or null``."""
    parts = alternatives(annotation)
    marks = list(metadata(annotation))
    bounds = _bounds(marks)
    words = dict.fromkeys(
        _words(part, bounds, _entries(marks))
        for part in parts
        if part is not type(None) and not (part is int and float in parts)
    )
    null = ", or null" if type(None) in parts else ""
    return " or ".join(words) + null


def _words(part: Any, bounds: str, entries: str) -> str:
    origin, arguments = get_origin(part), get_args(part)
    if origin is Literal:
        return ", ".join(map(str, arguments[:-1])) + (" or " if arguments[1:] else "") + str(arguments[-1])
    if origin is list:
        return f"a list{entries}" if arguments[0] is Any else f"a list{entries}, each {describe(arguments[0])}"
    if origin is dict or is_section(part):
        return f"a mapping of keys to values{entries}"
    simple = {int: "a whole number", float: "a number"}
    return f"{simple[part]}{bounds}" if part in simple else {bool: "true or false", str: "text"}.get(part, "any value")


def _entries(marks: list[Any]) -> str:
    low = next((f" at least {mark.min_length}" for mark in marks if isinstance(mark, MinLen)), "")
    high = next((f" at most {mark.max_length}" for mark in marks if isinstance(mark, MaxLen)), "")
    return f" ({f'{low},{high}'.strip(' ,')})" if low or high else ""


def _bounds(marks: list[Any]) -> str:
    low = next((f" from {figure(mark.ge)}" for mark in marks if isinstance(mark, Ge)), "")
    low = next((f" above {figure(mark.gt)}" for mark in marks if isinstance(mark, Gt)), low)
    high = next((f" to {figure(mark.le)}" for mark in marks if isinstance(mark, Le)), "")
    high = next((f" below {figure(mark.lt)}" for mark in marks if isinstance(mark, Lt)), high)
    return low + (f" up{high}" if "above" in low and " to " in high else high)


def figure(number: Any) -> str:
    """A bound, as it may be typed where that is short: ``0.001``, ``1024``, ``10^12``."""
    digits = f"{abs(number):.0f}"
    if len(digits) > 5 and digits == "1" + "0" * (len(digits) - 1):
        return f"{'-' * (number < 0)}10^{len(digits) - 1}"
    return str(number) if isinstance(number, int) else f"{number:g}"


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, dict):
        return ", ".join(default) or "{}"
    return f"{default:g}" if isinstance(default, float) else str(default)
