"""Passwords in what is kept or shown are replaced by ``***``: here is decided what is one.

Some are known by their form: what stands before the host in a URL, the values of its query, ``token=…``, ``Bearer …``.
Others by their value: what the command line or a configuration gave in such a place, and what variables of the
environment hold whose name says that it is secret. A library that echoes only a part of a URL does not show those.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from bgrpo.runs.stopping import hung_up, leave_dead_outputs

REDACTED = "***"
SHORTEST_KNOWN = 6
"""Characters. A shorter value is hidden where its form tells it, not wherever it occurs."""

_NAME = r"pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|private)[_-]?key|credentials?"
_PLAIN = r"[^\s\"'<>"  # no white space, no quotes; to be closed
_FORMS = (
    (re.compile(rf"//{_PLAIN}]{{0,1000}}@"), f"//{REDACTED}@"),  # to the last @: a password may hold "/" and "@"
    (re.compile(rf"(?i)%2f%2f{_PLAIN}]{{0,1000}}?%40"), f"%2F%2F{REDACTED}%40"),
    (re.compile(rf"(?i)((?:{_NAME})=){_PLAIN}&,;)}}\]]+"), rf"\g<1>{REDACTED}"),
    (re.compile(rf"(?i)((?:{_NAME})[\"']\s*:\s*[\"']){_PLAIN}]+"), rf"\g<1>{REDACTED}"),
    (re.compile(rf"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?){_PLAIN}]+"),
     rf"\g<1>{REDACTED}"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}"), rf"\g<1>{REDACTED}"),
    (re.compile(r"\b(?:hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
                r"|sk-[\w-]{16,}|AKIA[0-9A-Z]{12,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)"), REDACTED),
)  # fmt: skip
_QUERY = re.compile(rf"(//{_PLAIN}?#]{{0,1000}}[?#]|\?(?={_PLAIN}?#=&]+=))({_PLAIN}]+)")
_VALUE = re.compile(r"([^=?&#;]+=)?[^?&#;]+")
_SECRET_WORDS = {"PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "KEY", "APIKEY", "CREDENTIAL", "CREDENTIALS"}
_NOT_SECRET_ENDS = {"PATH", "FILE", "DIR", "MODE", "TYPE", "NAME"}
_known: set[str] = set()


def redact_credentials(text: str) -> str:
    """``text`` with ``***`` for every password, token and the like, see the module."""
    for secret in sorted(_known | set(_of_environment()), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return _QUERY.sub(lambda found: found[1] + _VALUE.sub(rf"\g<1>{REDACTED}", found[2]), text)


def redact_tree(tree: Any) -> Any:
    """The same nested lists and dictionaries, all texts in them redacted."""
    if isinstance(tree, dict):
        return {key: redact_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return redact_credentials(tree) if isinstance(tree, str) else tree


def remember_secrets(texts: Iterable[str]) -> None:
    """From now on, what is a secret by its form in one of these is hidden wherever this process shows it.

    Args:
        texts: one value each: an argument, or a URL.
    """
    for text in texts:
        _known.update(form for secret in _secrets(text) for form in _spellings(secret))


def remember_secrets_in(tree: Any, key: str = "") -> None:
    """:func:`remember_secrets` of every text in a configuration, given as nested lists and dictionaries.

    Args:
        tree: the configuration.
        key: where it stands in another one; the last name of it may say that a text is secret.
    """
    if isinstance(tree, dict):
        for name, value in tree.items():
            remember_secrets_in(value, str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            remember_secrets_in(value, key)
    elif isinstance(tree, str):
        remember_secrets([f"{key}={tree}"])


@contextmanager
def redacted_output() -> Iterator[None]:
    """While the block runs, standard output and error are redacted; so is the traceback of what ends the process."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = redacted(streams[0]), redacted(streams[1])
    sys.excepthook = _show_traceback
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def redacted(stream: TextIO) -> TextIO:
    """A text stream that redacts what is written to ``stream``; all else is the stream's own."""
    return cast(TextIO, _Redacted(stream))


class _Redacted:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._outliving_terminal():
            self._stream.write(redact_credentials(text))
        return len(text)

    def flush(self) -> None:
        with self._outliving_terminal():
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @contextmanager
    def _outliving_terminal(self) -> Iterator[None]:
        """A terminal that was closed takes nothing any more (EIO), nor does what stood between it and this process."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO and not (isinstance(error, BrokenPipeError) and hung_up()):
                raise
            leave_dead_outputs()


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact_credentials("".join(traceback.format_exception(kind, error, trace))))


def _secrets(text: str) -> Iterator[str]:
    """Of one value, in which a password may hold anything, white space too."""
    before, at, _ = text.rpartition("@")
    _, slashes, user = before.partition("//")
    if at and slashes:
        name, colon, password = user.partition(":")
        yield password if colon else name
        yield user
    rest = text[len(before) :] if at and slashes else text
    if "//" in text and (query := re.search(r"[?#](.+)", rest, re.DOTALL)):
        yield from (part.partition("=")[2] or part for part in re.split("[?&#;]", query[1]))
    if named := re.search(rf"(?i)(?:{_NAME})=(.+)", text, re.DOTALL):
        yield named[1]


def _spellings(secret: str) -> Iterator[str]:
    if len(secret) >= SHORTEST_KNOWN:
        yield from {secret, *(change(secret) for change in (unquote, unquote_plus, quote, quote_plus))}


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        words = name.upper().split("_")
        if _SECRET_WORDS & set(words) and words[-1] not in _NOT_SECRET_ENDS:
            yield from _spellings(value)
