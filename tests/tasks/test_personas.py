"""Dialogues from conversations: personas of other conversations, no speaker on both sides, no story with an answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bgrpo.tasks.chat import replies
from bgrpo.tasks.chat.__main__ import main
from bgrpo.tasks.chat.personas import make_dialogues


def conversations(count: int = 150, speakers: int = 12, seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    talks = {}
    for number in range(count):
        pair = draw.sample([f"s{speaker}" for speaker in range(speakers)], 2)
        talks[f"c{number}"] = {
            "messages": [
                [
                    {
                        "text": f"I like thing {who}.{number}.{turn} a lot. My word {'is here ' * (turn % 5)}",
                        "sender": who,
                    }
                ]
                for turn, who in enumerate(pair * 3)
            ]
        }
    return talks


def test_personas_and_stories_are_of_other_conversations() -> None:
    talks = conversations()
    made = make_dialogues(talks, 3, 0.3, 0.3, 3)
    assert made == make_dialogues(dict(reversed(talks.items())), 3, 0.3, 0.3, 3)
    assert made != make_dialogues(talks, 4, 0.3, 0.3, 3) and all(made)
    authors = [{row["speaker"] for row in rows} for rows in made[:3]]
    assert not authors[0] & (authors[1] | authors[2]) and not authors[1] & authors[2]
    told = {story["text"].split(" thing ")[1].split(".")[1] for story in made.stories}
    for row in (*made.train, *made.valid, *made.test):
        persona, _, context = row["question"].removeprefix("persona: ").partition(" context:  ")
        own = row["answers"][0].split(" thing ")[1].split(".")
        said = [each.split(" ")[0].split(".") for each in persona.split("I like thing ")[1:]]
        assert {speaker for speaker, *_ in said} <= {row["speaker"]} == {own[0]}
        assert own[1] not in {number for _, number, _ in said} and own[1] not in told
        assert context.startswith("Q: ") and context.split()[-1] != "R:"


def test_the_command_writes_what_the_task_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replies, "load_conversations", conversations)
    assert main(["dialogue", "--out", str(tmp_path), "--exchanges", "7", "--seed", "3"]) == 0
    assert f"{tmp_path / 'train.jsonl'}: 7 lines" in capsys.readouterr().out
    from bgrpo.tasks.base import load_task

    task = load_task("dialogue", {"corpus": str(tmp_path / "stories.jsonl"), "n_context": 2})
    for name in ("train", "valid", "test"):
        problems = task.load(tmp_path / f"{name}.jsonl").problems
        assert problems and all(len(each.passages) == 2 and each.fields["persona"] for each in problems)
    assert json.loads((tmp_path / "stories.jsonl").read_text().splitlines()[0]).keys() == {"id", "title", "text"}
    assert main(["dialogue", "--out", str(tmp_path), "--turns", "2"]) == 2
