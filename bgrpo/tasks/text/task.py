"""Problems that are text or chats, from the files that people have; what is right about an answer, the rewards say."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Message, Outcome, Problem, Record
from bgrpo.tasks.text.records import Row, read_records

PROMPT_COLUMNS = ("prompt", "messages", "question")
REFERENCE_COLUMNS = ("reference", "answer", "answers")


class TextTask:
    """Implements :class:`bgrpo.tasks.base.Task`, without a generator.

    Each row is one problem. Its prompt is text, or a chat: a list of ``{"role": …, "content": …}``, which the
    policy's own chat template renders. A chat that ends with an assistant's message gives that message as reference.
    Every further column travels with the problem, for rewards.

    Args:
        prompt: column of the prompts; default: the first of :data:`PROMPT_COLUMNS` that there is.
        reference: column of the known answers, each a text, a number or a list of texts; default: the first of
            :data:`REFERENCE_COLUMNS` that there is, else answers are not known.
        category: column of the labels that evaluations break down by; default: ``category`` where there is one.
        system: a system prompt for chats that have none; makes every prompt a chat.
        chat: True makes a text prompt a chat of one user message.
        passages: column of lists of texts, for a policy with an encoder: it reads each text apart, after the prompt and
            a blank. Default: it reads the prompt alone.
    """

    name = "text"
    record_suffixes = (".jsonl", ".ndjson")

    def __init__(
        self,
        prompt: str | None = None,
        reference: str | None = None,
        category: str | None = None,
        system: str | None = None,
        chat: bool = False,
        passages: str | None = None,
    ) -> None:
        named = {"prompt": prompt, "reference": reference, "category": category, "system": system, "passages": passages}
        for option, value in named.items():
            if value is not None and not isinstance(value, str):
                raise UserError(f"task.options.{option}={value!r}: expected text")
        if not isinstance(chat, bool):
            raise UserError(f"task.options.chat={chat!r}: expected true or false")
        self._prompt, self._reference, self._category = prompt, reference, category
        self._system, self._chat, self._passages = system, chat or system is not None, passages
        if passages is not None and self._chat:
            raise UserError(f"task.options.passages={passages!r}: are read after a text, not after a chat")

    def check(self, problem: Problem, completion: str) -> Outcome:
        """``correct`` when the completion is a known answer, both without surrounding blanks; else ``wrong``."""
        right = completion.strip() in [answer.strip() for answer in problem.answers]
        return Outcome.CORRECT if right else Outcome.WRONG

    def load(self, path: Path, *, for_training: bool = False, allow_bad: bool = False) -> LoadedProblems:
        """One problem per row of a file or a data set, see :func:`bgrpo.tasks.text.records.read_records`.

        Raises:
            UserError: the source cannot be read, holds no row, or a row does not fit (with its place).
        """
        problems = [problem for _, _, problem in self._read(path, "train" if for_training else "test")]
        if not problems:
            raise UserError(f"{path}: holds no row: expected one problem per row")
        return LoadedProblems(problems)

    def records(self, path: Path) -> Iterator[Record]:
        """The rows of a file or a data set, one after another, each as a line of JSON with all its columns.

        Raises:
            UserError: as :meth:`load`; or a row has a column that JSON cannot hold, such as a picture.
        """
        for place, row, problem in self._read(path, "train"):
            try:
                text = json.dumps({name: _plain(cell) for name, cell in row.items()}, ensure_ascii=False)
            except (TypeError, ValueError) as error:
                raise UserError(f"{place}: cannot be written as a line of JSON: {error}") from None
            yield Record(text, problem)

    def _read(self, path: Path, part: str) -> Iterator[tuple[str, Row, Problem]]:
        """The place, the columns and the problem of each row."""
        for place, number, row in read_records(str(path), part):
            try:
                problem = self._problem(row, number)
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
            yield place, row, problem

    def _problem(self, row: Row, number: int) -> Problem:
        """Raises ValueError: what is wrong with the row."""
        prompt = _column(row, "prompt", self._prompt, PROMPT_COLUMNS)
        if prompt is None:
            raise ValueError(
                f"has no column {' or '.join(map(repr, PROMPT_COLUMNS))}; it has {_shown(row)}: name the one that "
                "holds the prompt with task.options.prompt"
            )
        reference = _column(row, "reference", self._reference, REFERENCE_COLUMNS)
        category = _column(row, "category", self._category, ("category",))
        value = row[prompt]
        answers = [] if reference is None else _answers(reference, row[reference])
        messages: list[Message] = []
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"{prompt!r} is empty: expected a prompt")
            text = value
            if self._chat:
                messages = [{"role": "user", "content": value}]
        else:
            messages = _messages(prompt, value)
            if messages[-1]["role"] == "assistant":
                last = messages.pop()["content"]
                answers = answers or [last]
                if not messages:
                    raise ValueError(f"{prompt!r} holds an assistant's message alone: expected what it answers before")
            text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
        if messages and self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        for column, cell in row.items():
            if _holds_half_a_character(cell):
                raise ValueError(f"{column!r} holds half of a character (a lone surrogate): {_what(cell)}")
        label = "" if category is None or row[category] is None else str(row[category])
        fields = {name: plain for name, cell in row.items() if name != prompt and _fits_json(plain := _plain(cell))}
        passages = () if self._passages is None else _passages(row, self._passages, text, bool(messages))
        answer, *alternatives = answers or [""]
        return Problem(
            text, answer, label, tuple(messages), tuple(alternatives), fields, passages=passages, line=number
        )


def _column(row: Row, role: str, asked: str | None, usual: Iterable[str]) -> str | None:
    """The column that plays a role: the one asked for, or the first usual one that is there."""
    if asked is not None and asked not in row:
        raise ValueError(f"has no column {asked!r} (task.options.{role}); it has {_shown(row)}")
    return asked or next((name for name in usual if name in row), None)


def _shown(row: Row, most: int = 20) -> str:
    names = [repr(name) for name in row]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _messages(column: str, value: Any) -> list[Message]:
    """A checked copy of a chat."""
    if not isinstance(value, list):
        raise ValueError(f"{column!r} is {_what(value)}: expected text, or a chat of {{'role': …, 'content': …}}")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role or not isinstance(content, str):
            raise ValueError(
                f"{column!r}: message {number} is {_what(message)}: expected {{'role': text, 'content': text}}"
            )
        messages.append({"role": role, "content": content})
    if not messages:
        raise ValueError(f"{column!r} is a chat without messages")
    return messages


def _passages(row: Row, column: str, prompt: str, is_chat: bool) -> tuple[str, ...]:
    """What an encoder reads, one text per passage."""
    found = row[_column(row, "passages", column, ()) or column]
    if is_chat:
        raise ValueError(f"{column!r}: passages are read after a text, but the prompt is a chat")
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{column!r} is {_what(found)}: expected a list of texts, at least one, none of them empty")
    return tuple(f"{prompt} {text}" for text in found)


def _answers(column: str, value: Any) -> list[str]:
    """The known answers in one cell; none when it is empty."""
    answers = []
    for answer in value if isinstance(value, list) else [value]:
        if isinstance(answer, dict | list):
            raise ValueError(f"{column!r} is {_what(answer)}: expected text, a number or a list of them")
        if answer is not None and str(answer).strip():
            answers.append(str(answer))
    return answers


def _what(value: Any) -> str:
    """A value, and what it is, on one short line."""
    shown = " ".join(repr(value).split())
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:59] + '…'}"


def _holds_half_a_character(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(_holds_half_a_character(each) for pair in value.items() for each in pair)
    return isinstance(value, list) and any(map(_holds_half_a_character, value))


def _plain(value: Any) -> Any:
    """Dates and exact numbers as text, which is how JSON can hold them."""
    return str(value) if isinstance(value, datetime.date | datetime.time | decimal.Decimal) else value


def _fits_json(value: Any) -> bool:
    """Pictures, sound and other bytes stay behind."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
