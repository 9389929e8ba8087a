"""Rows of dialogue files: a question of persona and context, its answers, and stories that may come with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_QUESTION = re.compile(r"\s*persona:(?P<persona>.*?)\bcontext:(?P<context>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Story:
    """A passage of a corpus, or one that came with a row.

    Attributes:
        id: names it; may be empty.
        title: may be empty.
        text: never empty.
    """

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is said before an answer.

    Attributes:
        question: persona and context as one text.
        persona: sentences about the speaker who answers; empty where there are none.
        context: the turns before the answer.
        answers: known ones; may be empty.
        stories: that came with the row; empty where they are retrieved.
    """

    question: str
    persona: str
    context: str
    answers: tuple[str, ...]
    stories: tuple[Story, ...]


def exchange_of(row: Mapping[str, Any]) -> Exchange:
    """An exchange from a row: ``question``, or ``prompt`` with ``persona``; ``answers``, ``answer`` or ``target``.

    Raises:
        ValueError: what is wrong with the row.
    """
    if "question" in row:
        question = _text("question", row["question"])
        parts = _QUESTION.fullmatch(question)
        persona, context = (parts["persona"].strip(), parts["context"].strip()) if parts else ("", question.strip())
    elif "prompt" in row:
        context = _text("prompt", row["prompt"]).strip()
        persona = _persona(row.get("persona"))
        question = f"persona: {persona} context:  {context}" if persona else context
    else:
        raise ValueError("has neither 'question' nor 'prompt': expected {'question': …, 'answers': [ … ]}")
    return Exchange(question, persona, context, _answers(row), _stories(row.get("passages")))


def story_of(value: Any, name: str = "story") -> Story:
    """A story from a row ``{"id": …, "title": …, "text": …}``, of which ``text`` must be there, or from a text.

    Raises:
        ValueError: what is wrong with it.
    """
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a {type(value).__name__}: expected {{'id': …, 'title': …, 'text': …}}")
    found = {key: "" if value.get(key) is None else value[key] for key in ("id", "title", "text") if key in value}
    if "text" not in found:
        raise ValueError(f"{name} has no 'text'")
    for key, part in found.items():
        if key == "id" and isinstance(part, int):
            found[key] = str(part)
        elif not isinstance(part, str):
            raise ValueError(f"{name}: {key!r} is a {type(part).__name__}, expected text")
    return Story(found.get("id", ""), found.get("title", ""), _text(f"{name}: text", found["text"]))


def _persona(value: Any) -> str:
    """Sentences as one text, each with its full stop."""
    sentences = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(sentences, list) or not all(isinstance(each, str) for each in sentences):
        raise ValueError(f"'persona' is a {type(value).__name__}: expected text, or a list of texts")
    kept = [each.strip() for each in sentences if each.strip()]
    return " ".join(each if each.endswith((".", "!", "?")) else f"{each}." for each in kept)


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = next((name for name in ("answers", "answer", "target") if row.get(name) is not None), None)
    if name is None:
        return ()
    value = row[name]
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise ValueError(f"{name!r} is a {type(value).__name__}: expected a list of texts")
    return tuple(_text(name, each) for each in answers if each.strip())


def _stories(value: Any) -> tuple[Story, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"'passages' is a {type(value).__name__}: expected a list of {{'title': …, 'text': …}}")
    return tuple(story_of(each, f"passage {number}") for number, each in enumerate(value, 1))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is a {type(value).__name__}: expected text")
    if not value.strip():
        raise ValueError(f"{name!r} is empty: expected text")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name!r} holds half of a character (a lone surrogate)")
    return value
