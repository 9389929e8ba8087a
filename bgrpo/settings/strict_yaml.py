"""YAML without surprises: unique keys, no tags, and scalars whose meaning depends on nothing but how they look.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90, ``no`` as false and ``1e-4`` as text. Here a scalar without quotes is kept
as :class:`Plain` until it is known what its place takes; see :mod:`bgrpo.settings.typed`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bgrpo.errors import UserError
from bgrpo.files import readable_file

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_VALUES = 200_000  # with what aliases repeat
MAX_DIGITS = 40
NULLS = ("", "null", "Null", "NULL", "~")

Tree = Any
"""Mappings with text keys, lists, quoted text, and :class:`Plain`."""

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_AMBIGUOUS = re.compile(
    r"(?i)yes|no|on|off"
    r"|[-+]?0[0-9][0-9_.]*(?:e[-+]?[0-9]+)?"  # octal, or decimal with a zero before it
    r"|[-+]?0[xob][0-9a-f_]+"
    r"|[-+]?[0-9.]*[0-9]_[0-9_.]*(?:e[-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?"  # base 60
    r"|[-+]?\.(?:inf|nan)"
)


class Plain(str):
    """A scalar that was written without quotes."""

    __slots__ = ()


def plain_value(text: str) -> Any:
    """What a scalar without quotes means where no type says it: null, true, false, a decimal number, or text.

    Raises:
        ValueError: readers of YAML disagree about it, or no finite number holds it.
    """
    if text in NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if math.isinf(number) or _INTEGER.fullmatch(text):
            raise ValueError("larger than any number that is read here")
        return number
    if _AMBIGUOUS.fullmatch(text):
        raise ValueError("can be read in two ways: write true, false or a finite decimal number, or put text in quotes")
    return str(text)


def read_text(path: Path) -> str:
    """The text of a configuration file. Time and memory are bounded, whatever the file is.

    Raises:
        UserError: no regular file, unreadable, too large, or not UTF-8.
    """
    try:
        return readable_file(path, MAX_BYTES).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as YAML: it is not UTF-8 text ({error})") from error


def read_yaml(path: Path) -> dict[str, Tree]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: see :func:`read_text` and :func:`parse_yaml`; or it holds no mapping, or nothing.
    """
    tree = parse_yaml(read_text(path), str(path))
    if tree == Plain(""):
        raise UserError(f"{path}: holds nothing; expected a mapping of keys to values")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise UserError(f"{path}: expected a mapping of keys to values, found {kind}")
    return tree


def parse_yaml(text: str, where: str) -> Tree:
    """The one document of a text.

    Args:
        text: YAML.
        where: names it in errors.

    Raises:
        UserError: malformed, or with tags, merge keys, keys that come twice, or more than the bounds above.
    """
    try:
        return _Builder(yaml.parse(text, Loader=_PARSER)).document()
    except (yaml.YAMLError, UnicodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}: cannot be read as YAML: {line}{problem}") from None


def dump_yaml(tree: dict[str, Any]) -> str:
    """YAML text from which :func:`read_yaml` and a Section make the same values again, text that looks like a number
    included."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Builder:
    """A tree from the parser's events. Nothing is repeated before its size and depth are known."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._values = 0
        self._anchors: dict[str, tuple[Tree, int, int]] = {}  # value, how many values, levels below it

    def document(self) -> Tree:
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return Plain("")
        tree, _ = self._value(next(self._events), 0)
        next(self._events)  # the document ends
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _problem(after, "a second document begins; expected one")
        return tree

    def _value(self, event: Any, depth: int) -> tuple[Tree, int]:
        """The value that begins with an event, and how many levels lie below it."""
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _problem(event, f"*{event.anchor} stands for nothing that was complete before")
            tree, values, height = self._anchors[event.anchor]
            self._count(event, values, depth + height)
            return copy.deepcopy(tree), height  # an override changes one of them
        if event.tag is not None:
            raise _problem(event, "tags (!…) are not read")
        before = self._values
        self._count(event, 1, depth)
        tree, height = self._content(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = tree, self._values - before, height
        return tree, height

    def _content(self, event: Any, depth: int) -> tuple[Tree, int]:
        if isinstance(event, yaml.ScalarEvent):
            return (Plain(event.value) if event.implicit[0] else event.value), 0
        height = 0
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(part := next(self._events), yaml.SequenceEndEvent):
                item, below = self._value(part, depth + 1)
                items.append(item)
                height = max(height, below + 1)
            return items, height
        lines: dict[str, int] = {}
        tree: dict[str, Tree] = {}
        while not isinstance(part := next(self._events), yaml.MappingEndEvent):
            key = self._key(part, lines)
            tree[key], below = self._value(next(self._events), depth + 1)
            height = max(height, below + 1)
        return tree, height

    def _key(self, event: Any, lines: dict[str, int]) -> str:
        """A key's text, which must be new; ``lines`` says where the others stand."""
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
            raise _problem(event, "expected a key that is text")
        if event.implicit[0] and event.value in (*NULLS, "<<"):
            raise _problem(event, f"{event.value!r} is no key that is read here; expected text")
        if event.value in lines:
            raise _problem(event, f"the key {event.value!r} is given again, first in line {lines[event.value]}")
        mark: Any = event.start_mark
        lines[event.value] = mark.line + 1
        return str(event.value)

    def _count(self, event: Any, values: int, depth: int) -> None:
        self._values += values
        if depth > MAX_DEPTH:
            raise _problem(event, f"nested more than {MAX_DEPTH} levels deep")
        if self._values > MAX_VALUES:
            raise _problem(event, f"more than {MAX_VALUES} values, those that aliases repeat included")


def _problem(event: Any, text: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader may take for something else, and repeats instead of referring."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = not (_AMBIGUOUS.fullmatch(text) or _NUMBER.fullmatch(text) or text in (*NULLS, *_TRUE, *_FALSE))
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else "'")


_Dumper.add_representer(str, _represent_text)
