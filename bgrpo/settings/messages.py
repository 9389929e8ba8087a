"""What is wrong with a configuration, in plain words, and which key was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from bgrpo.settings.key_table import describe, known_keys
from bgrpo.settings.spelling import nearest_keys
from bgrpo.settings.typed import MAX_SHOWN, UNKNOWN, alternatives, below, is_section
from bgrpo.settings.values import Section

MAX_PROBLEMS = 3
NAME = "[key]"  # pydantic's last word on where, when the key itself is wrong
_WITH_COMMAS = re.compile(r"[-+]?[0-9]{1,20}(,[0-9]{1,20}){1,5}")


def explain(section: type[Section], error: ValidationError) -> str:
    """The first problems, each with its key, what was given and what is expected; and how many there are besides."""
    problems: dict[str, Any] = {}
    for item in error.errors(include_url=False, include_context=False):
        is_unknown = item["type"] == "extra_forbidden"
        problems.setdefault(_dotted(item["loc"]) if is_unknown else _place(section, item["loc"])[0], item)
    first = [_problem(section, item) for item in list(problems.values())[:MAX_PROBLEMS]]
    return "; ".join([*first, *([f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else [])])


def _problem(section: type[Section], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return unknown_key(_dotted(item["loc"]), section)
    if item["loc"][-1:] == (NAME,):
        return _misnamed(section, *item["loc"][:-1])
    key, annotation = _place(section, item["loc"])
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        given = "" if isinstance(item["input"], dict | list) else f"={shown(item['input'])}"
        return f"{key}{given}: {message}" if key else message
    return f"{key}={shown(item['input'])}: expected {describe(annotation)}{_written(item['input'], annotation)}"


def _misnamed(section: type[Section], *location: Any) -> str:
    """Of a name that the keys of a mapping may not have."""
    *place, name = location
    key, annotation = _place(section, place)
    kinds = [get_args(part)[0] for part in alternatives(annotation) if get_origin(part) is dict]
    told = [field.description for kind in kinds for field in getattr(kind, "__metadata__", ()) if field.description]
    return f"{key}: {shown(name)} is no name that may stand here: expected {' or '.join(told) or 'a text'}"


def _written(given: Any, annotation: Any) -> str:
    """How numbers with commas are written here."""
    if not isinstance(given, str) or not _WITH_COMMAS.fullmatch(given):
        return ""
    parts = alternatives(annotation)
    if any(get_origin(part) is list for part in parts):
        return f"; write [{given}]"
    kinds = {part for part in parts if part in (int, float)}
    if not kinds:
        return ""
    return f"; write {given.replace(',', '' if float not in kinds or given.count(',') > 1 else '.')}"


def _dotted(location: Iterable[Any]) -> str:
    return ".".join(map(str, location))


def _place(section: type[Section], location: Iterable[Any]) -> tuple[str, Any]:
    """The key and the type of a problem; pydantic's location goes on with the parts of a union."""
    names: list[str] = []
    annotation: Any = section
    for name in location:
        inner = below(annotation, name, marked=False)
        if inner is UNKNOWN:
            break
        names.append(str(name))
        annotation = inner
    return ".".join(names), annotation


def shown(value: Any) -> str:
    """A value as a message shows it: short, whatever it is."""
    if isinstance(value, int) and abs(value) > 10**MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value[:MAX_SHOWN] if isinstance(value, str | list) else value)
    except Exception:  # noqa: BLE001 an object from a script
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def unknown_key(key: str, section: type[Section]) -> str:
    """Says that there is no such key, and which one was probably meant; nothing where no guess is good."""
    if key in known_keys(section):
        return f"{key}: expected in sections, as {key.replace('.', ': {')}: …{'}' * key.count('.')}"
    parent = key.rpartition(".")[0]
    inner = [part for part in alternatives(below(section, parent)) if is_section(part)] if parent else []
    beside = [f"{parent}.{name}" for part in inner for name in part.model_fields]  # sections in a mapping
    meant = nearest_keys(key, dict.fromkeys([*known_keys(section), *beside]))
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    return f"unknown key {shown(key)}{hint}"
