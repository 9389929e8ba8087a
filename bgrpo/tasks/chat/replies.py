"""Replies, preference pairs and prompts from the conversations of the package ``chitchat-dataset``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bgrpo.errors import UserError
from bgrpo.tasks.chat.packages import package_folder

Message = dict[str, str]
UNRATED = 5.0
"""The rating that people left as it was, on a scale from 1 to 10; conversations without ratings count as this."""
WORDS = range(3, 41)
"""Lengths of the replies that are used, and of the longest turn of a prompt."""


class Reply(NamedTuple):
    """A turn of a conversation with the turns before it.

    Attributes:
        prompt: the turns before, the first and the last of them by the other speaker (``user``).
        text: the reply.
        speaker: who wrote it.
        partner: who wrote the turn before.
        conversation: name of the conversation.
        rating: mean rating of the conversation, 1 to 10.
    """

    prompt: list[Message]
    text: str
    speaker: str
    partner: str
    conversation: str
    rating: float


def load_conversations() -> dict[str, Any]:
    """The conversations as the package has them, by name.

    Raises:
        UserError: the package is not installed.
    """
    file = package_folder("chitchat_dataset", "chitchat-dataset") / "dataset.json"
    return json.loads(file.read_text("utf-8"))


def split_replies(
    conversations: Mapping[str, Any], seed: int, held_out: float, turns: int = 3
) -> tuple[list[Reply], list[Reply]]:
    """Replies for training and held-out ones; no speaker, as author or as partner, is on both sides.

    Every speaker is drawn to one side. A conversation between the sides is left out.

    Args:
        conversations: as :func:`load_conversations` gives them.
        seed: of the draw.
        held_out: chance of a speaker to be held out, above 0 and below 1.
        turns: most turns in a prompt, odd, so that the other speaker begins.

    Returns:
        Both lists shuffled; a pure function of the arguments.
    """
    draw = random.Random(seed)
    speakers = sorted({turn[0]["sender"] for talk in conversations.values() for turn in talk["messages"] if turn})
    held = {speaker for speaker in speakers if draw.random() < held_out}
    sides: tuple[list[Reply], list[Reply]] = ([], [])
    for name in sorted(conversations):
        replies = list(_replies(name, conversations[name], turns))
        present = {speaker in held for reply in replies for speaker in (reply.speaker, reply.partner)}
        if len(present) == 1:
            sides[present.pop()].extend(replies)
    for side in sides:
        draw.shuffle(side)
    return sides


def preference_pairs(replies: list[Reply], count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs: the true reply is chosen, a reply from another conversation of the same list is rejected.

    Args:
        replies: of one side of a split, see :func:`split_replies`.
        count: at most so many pairs.
        seed: of the draw of the rejected replies.

    Returns:
        Columns ``prompt`` (messages), ``chosen``, ``rejected``, ``weight`` (mean rating / 10) and ``speaker`` (who
        wrote the true reply).

    Raises:
        UserError: the replies are of one conversation.
    """
    if len({reply.conversation for reply in replies}) < 2:
        raise UserError(f"{len(replies)} replies of fewer than two conversations: a rejected reply needs another one")
    draw = random.Random(seed)
    pairs = []
    for reply in replies[:count]:
        other = reply
        while other.conversation == reply.conversation or other.text == reply.text:
            other = draw.choice(replies)
        pairs.append(
            {
                "prompt": reply.prompt,
                "chosen": reply.text,
                "rejected": other.text,
                "weight": reply.rating / 10,
                "speaker": reply.speaker,
            }
        )
    return pairs


def prompt_records(replies: Iterable[Reply]) -> list[dict[str, Any]]:
    """Problems for a policy: ``prompt`` (messages), ``answer`` (the true reply) and ``speaker`` (its author)."""
    return [{"prompt": reply.prompt, "answer": reply.text, "speaker": reply.speaker} for reply in replies]


def _replies(name: str, talk: Mapping[str, Any], turns: int) -> Iterable[Reply]:
    """Every usable reply of a conversation between two people."""
    said = [
        (turn[0]["sender"], " ".join(" ".join(m["text"] for m in turn).split())) for turn in talk["messages"] if turn
    ]
    rated = list((talk.get("ratings") or {}).values())
    rating = sum(rated) / len(rated) if rated else UNRATED
    for end in range(1, len(said)):
        before = said[max(0, end - turns) : end]
        before = before[(len(before) + 1) % 2 :]  # an odd number: the other speaker begins and ends
        speaker, text = said[end]
        partner = before[-1][0]
        lengths = [len(words.split()) for _, words in before]
        if speaker == partner or len(text.split()) not in WORDS or min(lengths) < 1 or max(lengths) >= WORDS.stop:
            continue
        prompt = [
            {"role": "assistant" if author == speaker else "user", "content": content} for author, content in before
        ]
        yield Reply(prompt, text, speaker, partner, name, rating)
