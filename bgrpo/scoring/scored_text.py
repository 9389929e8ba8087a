"""What a reward model or a reward server is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, str]]
"""Chat messages, each with ``role`` and ``content``."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Item(NamedTuple):
    """One completion to score.

    Attributes:
        prompt: text or chat messages.
        completion: text, or chat messages (most often one, of the assistant).
        columns: the other fields of the problem.
        group: completions that lie together and have the same number are of one group.
    """

    prompt: str | Messages
    completion: str | Messages
    columns: Mapping[str, Any] = _NOTHING
    group: int = 0


class Score(NamedTuple):
    """What became of one completion: a value, a failure, or neither when the reward does not apply.

    Attributes:
        value: finite.
        failure: why there is none, in one short line.
        cut_tokens: tokens that were left out on the left because the text was too long.
    """

    value: float | None = None
    failure: str = ""
    cut_tokens: int = 0


def shorten(text: object, limit: int = 200) -> str:
    """A text from elsewhere as one line of a message."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(text)[: 4 * limit].split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def is_text(value: object) -> bool:
    """Whether ``value`` is text or chat messages."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple)
        and all(
            isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in value
        )
    )


def as_messages(value: str | Messages, role: str) -> list[dict[str, str]]:
    """Chat messages; a text is one message of ``role``."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [{"role": message["role"], "content": message["content"]} for message in value]
