"""The dialogue task: its files, its strings, and which stories it finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bgrpo.errors import UserError
from bgrpo.tasks.base import Outcome, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems

QUESTION = "persona: i love dogs. i play the violin. context:  Q: hello R: hi Q: what do you do ?"
STORIES = [
    {"id": "a", "title": "The storm", "text": "Rain fell on the {text} harbour all night."},
    {"id": "b", "title": "My violin", "text": "I practised the violin before the concert."},
    {"id": "c", "title": "Dogs", "text": "My dogs ran over the beach, and I love them."},
    {"id": "d", "title": "Work", "text": "What do you do when work is slow?"},
]


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def problems(tmp_path: Path, rows: Sequence[Any], **options: Any) -> list[Any]:
    options = {"corpus": write(tmp_path / "stories.jsonl", STORIES), "n_context": 2, **options}
    return load_task("dialogue", options).load(Path(write(tmp_path / "data.jsonl", rows))).problems


def test_texts_are_those_of_lapdog(tmp_path: Path) -> None:
    row = {"question": QUESTION, "answers": ["i play the violin ."]}
    (found,) = problems(tmp_path, [row])
    query = f"dialog with R's persona: {QUESTION} R: <extra_id_0>"
    assert found.prompt == query and found.answers == ["i play the violin ."] and found.line == 1
    assert found.passages == (
        f"{query} story title: Dogs story: My dogs ran over the beach, and I love them.",
        f"{query} story title: My violin story: I practised the violin before the concert.",
    )
    assert found.answer_prefix == "<extra_id_0>" and found.fields["persona"] == "i love dogs. i play the violin."
    assert [each["id"] for each in found.fields["passages"]] == ["c", "b"]
    assert found.fields["context"] == "Q: hello R: hi Q: what do you do ?"
    (closed,) = problems(tmp_path, [row], closed_book=True)
    assert closed.prompt == query and closed.passages == ()


def test_stories_are_searched_by_what_was_asked_and_kept_with_a_run(tmp_path: Path) -> None:
    rows = [{"question": QUESTION}, {"question": "what do you do for work ?", "answers": []}]
    by_context = problems(tmp_path, rows, retrieve_by="context", n_context=1)
    assert [each.fields["passages"][0]["id"] for each in by_context] == ["d", "d"]
    everything = problems(tmp_path, rows, retrieve_by="all", n_context=9)
    assert [len(each.passages) for each in everything] == [4, 4], "a small corpus gives what it has"
    assert any("Rain fell on the {text} harbour" in text for text in everything[0].passages)
    assert problems(tmp_path, rows, retrieve_by="all", n_context=9) == everything
    write_problems(tmp_path / "kept.jsonl", everything)
    assert read_problems(tmp_path / "kept.jsonl") == everything


def test_best_stories_first_and_equal_ones_as_they_stand() -> None:
    from bgrpo.tasks.dialogue.exchanges import Story
    from bgrpo.tasks.dialogue.retrieval import WordRetriever

    texts = ["red apple", "green pear", "red apple", "red red apple pie", "sky"]
    find = WordRetriever([Story(str(number), "", text) for number, text in enumerate(texts)], "{title} {text}").find
    assert [[story.id for story in found] for found in find(["apple red", "unheard words", ""], 3)] == [
        ["0", "2", "3"],
        ["0", "1", "2"],
        ["0", "1", "2"],
    ]


def test_a_sentence_encoder_finds_the_largest_inner_products(tmp_path: Path) -> None:
    from tiny_rewards import WORDS, write_model
    from transformers import AutoModel, AutoTokenizer

    folder = write_model(tmp_path / "encoder", "bert", kind="encoder")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vector(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    stories = [{"id": str(n), "title": WORDS[n], "text": " ".join(WORDS[n : n + 3])} for n in range(12)]
    stories.append(stories[3] | {"id": "again"})
    corpus = write(tmp_path / "other.jsonl", stories)
    row = {"prompt": f"{WORDS[4]} {WORDS[5]}", "persona": "", "answer": "w1"}
    (found,) = problems(tmp_path, [row], corpus=corpus, encoder=str(folder), n_context=13)
    query = vector(f" {WORDS[4]} {WORDS[5]}")
    products = {each["id"]: float(vector(f"{each['title']} {each['text']}") @ query) for each in stories}
    ids = [each["id"] for each in found.fields["passages"]]
    assert [products[name] for name in ids] == pytest.approx(sorted(products.values(), reverse=True), abs=1e-5)
    assert ids.index("again") == ids.index("3") + 1, "of equal ones the earlier"
    with pytest.raises(UserError, match="sentence encoder"):
        problems(tmp_path, [row], encoder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"task\.options\.encoder=3: expected the folder"):
        problems(tmp_path, [row], encoder=3)


def test_persona_and_prompt_in_columns_and_passages_in_the_row(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "Q: hello",
            "persona": ["i love dogs", "i sing !"],
            "target": "hi",
            "speaker": "s1",
            "passages": [{"title": "t", "text": "x"}, "y", {"text": "z"}],
        }
    ]
    (found,) = problems(tmp_path, rows, corpus=None, query="{question}", passage="{query} | {title} | {text}")
    question = "persona: i love dogs. i sing ! context:  Q: hello"
    assert found.prompt == question and found.passages == (f"{question} | t | x", f"{question} |  | y")
    assert found.fields["speaker"] == "s1" and found.answers == ["hi"]


def test_check_compares_as_squad_does(tmp_path: Path) -> None:
    task = load_task("dialogue", {"closed_book": True})
    (problem,) = task.load(
        Path(write(tmp_path / "d.jsonl", [{"question": "q", "answers": ["No", "The dog!"]}]))
    ).problems
    assert task.check(problem, "a  dog") == Outcome.CORRECT and task.check(problem, "dogs") == Outcome.WRONG


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": ["a"]}, r"data.jsonl:2: has neither 'question' nor 'prompt'"),
        ({"question": 3}, r"data.jsonl:2: 'question' is a int: expected text"),
        ({"question": " "}, r"data.jsonl:2: 'question' is empty"),
        ({"question": "a", "answers": {"b": 1}}, r"data.jsonl:2: 'answers' is a dict"),
        ({"question": "a", "answers": ["b", 1]}, r"data.jsonl:2: 'answers' is a list"),
        ({"question": "a\ud800"}, r"data.jsonl:2: .*half of a character"),
        ({"question": "a", "passages": "b"}, r"data.jsonl:2: 'passages' is a str"),
        ({"question": "a", "passages": [{"title": "b"}]}, r"data.jsonl:2: passage 1 has no 'text'"),
        ({"question": "a", "passages": [{"title": 1, "text": "b"}]}, r"data.jsonl:2: passage 1: 'title' is a int"),
        ({"prompt": "a", "persona": 1}, r"data.jsonl:2: 'persona' is a int"),
        (["question"], r"data.jsonl:2: expected an object"),
    ],
)
def test_a_line_that_does_not_fit_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        problems(tmp_path, [{"question": "fine"}, row])


def test_a_corpus_that_does_not_fit_is_named(tmp_path: Path) -> None:
    rows = [{"question": "fine"}]
    bad = write(tmp_path / "bad.jsonl", [STORIES[0], {"title": "no text"}])
    with pytest.raises(UserError, match=r"bad.jsonl:2: story has no 'text'"):
        problems(tmp_path, rows, corpus=bad)
    with pytest.raises(UserError, match=r"data.jsonl:1: has no 'passages': name a corpus"):
        problems(tmp_path, rows, corpus=None)
    with pytest.raises(UserError, match="no word that can be searched for"):
        problems(tmp_path, rows, corpus=write(tmp_path / "empty.jsonl", [{"text": "..."}]), searched="{text}")
    with pytest.raises(UserError, match="holds no row"):
        problems(tmp_path, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_context": 0}, "n_context=0: expected a whole number from 1 to 100"),
        ({"n_context": True}, "n_context=True"),
        ({"closed_book": "yes"}, "closed_book='yes': expected true or false"),
        ({"retrieve_by": "title"}, "retrieve_by='title': expected one of persona, context, all"),
        ({"query": "no place"}, "query='no place': expected text with {question}"),
        ({"passage": "{query} {body}"}, "passage='{query} {body}'"),
        ({"searched": "{title}"}, "searched='{title}'"),
        ({"corpus": 3}, "corpus=3"),
        ({"answer_prefix": None}, "answer_prefix=None"),
        ({"stories": "x"}, "do not fit task 'dialogue'"),
        ({"corpsu": "x"}, "did you mean 'corpus'?"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task("dialogue", options)
    assert message in str(caught.value)
