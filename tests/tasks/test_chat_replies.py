"""Replies and pairs from conversations: no speaker on both sides, seeded, and made of what was said."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bgrpo.errors import UserError
from bgrpo.tasks.chat import packages
from bgrpo.tasks.chat.packages import package_folder
from bgrpo.tasks.chat.replies import WORDS, preference_pairs, prompt_records, split_replies


def conversations(count: int = 120, speakers: int = 30, seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    talks = {}
    for number in range(count):
        pair = draw.sample([f"s{speaker}" for speaker in range(speakers)], 2)
        turns = [
            [
                {
                    "text": " ".join(f"{number}.{turn}.{word}" for word in range(draw.choice([1, 3, 5, 60]))),
                    "sender": who,
                }
                for _ in range(draw.choice([1, 2]))
            ]
            for turn, who in enumerate(pair * draw.randint(0, 4))
        ]
        talks[f"c{number}"] = {"messages": [*turns, []]}
        if draw.random() < 0.5:
            talks[f"c{number}"]["ratings"] = {"witty": 8, "upbeat": 6, "interesting": 10}
    return talks


def test_no_speaker_is_on_both_sides_and_every_prompt_begins_and_ends_with_the_other() -> None:
    talks = conversations()
    for seed in range(5):
        train, held = split_replies(talks, seed, 0.5, turns=3)
        speakers = [{name for reply in side for name in (reply.speaker, reply.partner)} for side in (train, held)]
        assert train and held and not speakers[0] & speakers[1]
        assert split_replies(talks, seed, 0.5, turns=3) == (train, held)
        assert split_replies(dict(reversed(talks.items())), seed, 0.5, turns=3) == (train, held)
        for reply in train + held:
            roles = [message["role"] for message in reply.prompt]
            assert roles in (["user"], ["user", "assistant", "user"]) and reply.speaker != reply.partner
            assert len(reply.text.split()) in WORDS and reply.rating in (5.0, 8.0)
            said = [message["content"].split()[0].split(".")[:2] for message in reply.prompt] + [
                reply.text.split(".")[:2]
            ]
            numbers = [int(turn) for _, turn in said]
            assert {f"c{talk}" for talk, _ in said} == {reply.conversation}
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert split_replies(talks, 1, 0.3) != split_replies(talks, 2, 0.3)


def test_a_rejected_reply_is_from_another_conversation_of_the_same_side() -> None:
    train, _ = split_replies(conversations(), 0, 0.3)
    pairs = preference_pairs(train, 50, seed=1)
    texts = {reply.text: reply for reply in train}
    for pair, reply in zip(pairs, train[:50], strict=True):
        assert pair["chosen"] == reply.text and pair["speaker"] == reply.speaker and pair["weight"] == reply.rating / 10
        assert texts[pair["rejected"]].conversation != reply.conversation
    assert pairs == preference_pairs(train, 50, seed=1) != preference_pairs(train, 50, seed=2)
    records = prompt_records(train)
    assert [record["answer"] for record in records] == [reply.text for reply in train]
    with pytest.raises(UserError, match="fewer than two conversations"):
        preference_pairs(train[:1], 5, seed=0)


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps chitchat-dataset"):
        package_folder("chitchat_dataset", "chitchat-dataset")
