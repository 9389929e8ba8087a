"""Dialogues with personas, and a corpus of stories, from the conversations of the package ``chitchat-dataset``.

A persona is made of what the speaker says about themselves in other conversations (Mazaré et al. 2018). Stories are
longer turns of that kind from conversations that give no exchange, so no story holds an answer.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bgrpo.tasks.chat.replies import Reply, split_replies

_FIRST_PERSON = re.compile(r"\b(i|my|me|mine|i'm|i've|i'd|i'll|im|ive)\b", re.IGNORECASE)
_ENDS = re.compile(r"(?<=[.!?])\s+")
SENTENCE_WORDS = range(4, 21)
STORY_WORDS = range(12, 81)
SENTENCES = 5
"""Of a persona."""
CONVERSATIONS = 3
"""Those that a speaker with a persona has at least."""


class Dialogues(NamedTuple):
    """Rows of four files.

    Attributes:
        train: exchanges, ``question`` and ``answers``, and their ``speaker``.
        valid: of other speakers.
        test: by authors of neither.
        stories: ``id``, ``title`` and ``text``.
    """

    train: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    test: list[dict[str, Any]]
    stories: list[dict[str, str]]


def make_dialogues(
    conversations: Mapping[str, Any], seed: int, held_out: float, of_stories: float, turns: int
) -> Dialogues:
    """Exchanges and stories; a pure function of the arguments.

    Args:
        conversations: as :func:`bgrpo.tasks.chat.replies.load_conversations` gives them.
        seed: of the draws.
        held_out: chance of a speaker to be held out, for ``valid`` and ``test``, above 0 and below 1.
        of_stories: chance of a conversation to give stories and no exchange, likewise.
        turns: most turns of a context, odd, so that the partner begins.
    """
    draw = random.Random(f"stories {seed}")
    told = {name for name in sorted(conversations) if draw.random() < of_stories}
    spoken = {name: talk for name, talk in conversations.items() if name not in told}
    sentences = _sentences(spoken)
    train, held = split_replies(spoken, seed, held_out, turns)
    draw = random.Random(f"test {seed}")
    tested = {author for author in sorted({reply.speaker for reply in held}) if draw.random() < 0.5}
    sides = (
        train,
        [reply for reply in held if reply.speaker not in tested],
        [reply for reply in held if reply.speaker in tested],
    )
    rows = [[row for reply in side if (row := _row(reply, sentences, seed)) is not None] for side in sides]
    return Dialogues(rows[0], rows[1], rows[2], _stories({name: conversations[name] for name in sorted(told)}))


def _row(reply: Reply, sentences: Mapping[str, Mapping[str, list[str]]], seed: int) -> dict[str, Any] | None:
    """An exchange; None where its speaker says too little elsewhere."""
    of_speaker = sentences.get(reply.speaker, {})
    elsewhere = sorted({each for name, found in of_speaker.items() if name != reply.conversation for each in found})
    if len(of_speaker) < CONVERSATIONS or len(elsewhere) < 2 * SENTENCES:
        return None
    draw = random.Random(f"{seed} {reply.conversation} {reply.speaker}")  # one persona throughout a conversation
    persona = " ".join(draw.sample(elsewhere, SENTENCES))
    context = " ".join(f"{'R' if turn['role'] == 'assistant' else 'Q'}: {turn['content']}" for turn in reply.prompt)
    question = f"persona: {persona} context:  {context}"
    return {"question": question, "answers": [reply.text], "speaker": reply.speaker}


def _sentences(conversations: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """What each speaker says about themselves, by conversation."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(conversations):
        for speaker, text in _turns(conversations[name]):
            for sentence in _ENDS.split(text):
                says = _FIRST_PERSON.search(sentence) and "?" not in sentence and "context:" not in sentence
                if says and len(sentence.split()) in SENTENCE_WORDS:
                    found[speaker][name].append(sentence.rstrip(".! ") + ".")
    return {speaker: dict(talks) for speaker, talks in found.items()}


def _stories(conversations: Mapping[str, Any]) -> list[dict[str, str]]:
    """Longer turns in the first person, each once; their first words are their titles."""
    stories: list[dict[str, str]] = []
    seen: set[str] = set()
    for name, talk in conversations.items():
        for number, (_, text) in enumerate(_turns(talk)):
            if len(text.split()) in STORY_WORDS and _FIRST_PERSON.search(text) and text not in seen:
                seen.add(text)
                stories.append({"id": f"{name}-{number}", "title": " ".join(text.split()[:4]), "text": text})
    return stories


def _turns(talk: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(speaker, text) of every turn."""
    for turn in talk["messages"]:
        if turn:
            yield turn[0]["sender"], " ".join(" ".join(message["text"] for message in turn).split())
