"""Text problems from every kind of file that people have, and what is said about rows that do not fit."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgrpo.config import ProblemSource, TaskSection
from bgrpo.errors import UserError
from bgrpo.tasks.base import Outcome, Problem, load_file, load_task
from bgrpo.tasks.problem_files import read_problems, write_problems
from bgrpo.tasks.splits import load_splits
from bgrpo.tasks.text import records
from bgrpo.tasks.text.task import TextTask

ROWS = [
    {"prompt": "2 + 2?", "answer": "4", "category": "sums", "level": "1"},
    {"prompt": "Capital of France?\nOne word.", "answer": "Paris", "category": "places", "level": "2"},
]
PROBLEMS = [
    Problem(
        row["prompt"],
        row["answer"],
        row["category"],
        fields={name: value for name, value in row.items() if name != "prompt"},
    )
    for row in ROWS
]


def write(path: Path) -> None:
    """The rows above, as the file's name says."""
    data = datasets.Dataset.from_list(ROWS)
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
        case ".json" if path.stem == "under_a_key":
            path.write_text(json.dumps({"version": 1, "data": ROWS}))
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".csv":
            data.to_csv(path)
        case ".tsv":
            data.to_csv(path, sep="\t")
        case ".parquet":
            data.to_parquet(path)
        case _ if path.stem == "splits":
            datasets.DatasetDict(train=data, other=data.select([0])).save_to_disk(path)
        case _:
            data.save_to_disk(path)


KINDS = ["a.jsonl", "a.ndjson", "a.json", "under_a_key.json", "a.csv", "a.tsv", "a.parquet", "folder", "splits"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_problems(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert load_file(load_task("text"), tmp_path / name, for_training=True).problems == PROBLEMS


def test_a_split_is_named_after_a_colon(tmp_path: Path) -> None:
    write(tmp_path / "splits")
    assert TextTask().load(Path(f"{tmp_path / 'splits'}:other")).problems == PROBLEMS[:1]
    with pytest.raises(UserError, match=r"has no split 'test'; name one of \['other', 'train'\] as SOURCE:SPLIT"):
        TextTask().load(tmp_path / "splits")
    with pytest.raises(UserError, match="has no split 'none'"):
        TextTask().load(Path(f"{tmp_path / 'splits'}:none"))


def test_a_saved_data_set_without_a_row_is_told(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"prompt": "a"}]).select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match=r"state\.json: _data_files names nothing: the data set holds no row"):
        TextTask().load(tmp_path / "empty")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: list(data))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data[split])
    assert TextTask().load(Path("owner/name")).problems == PROBLEMS[:1]
    assert TextTask().load(Path("owner/name"), for_training=True).problems == PROBLEMS
    assert TextTask().load(Path("owner/name:train")).problems == PROBLEMS


def of(row: dict[str, Any], tmp_path: Path, **options: Any) -> Problem:
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    (problem,) = TextTask(**options).load(tmp_path / "one.jsonl").problems
    return problem


USER, ASSISTANT, SYSTEM = ({"role": role, "content": f"by {role}"} for role in ("user", "assistant", "system"))


def test_chats(tmp_path: Path) -> None:
    plain = of({"prompt": [USER]}, tmp_path)
    assert (plain.messages, plain.prompt, plain.answers) == ((USER,), "user: by user", [])
    answered = of({"messages": [USER, ASSISTANT]}, tmp_path)
    assert (answered.messages, answered.answer) == ((USER,), "by assistant")
    known = of({"messages": [USER, ASSISTANT], "answer": "other"}, tmp_path)
    assert (known.messages, known.answer) == ((USER,), "other")
    told = of({"prompt": [USER]}, tmp_path, system="by system")
    assert told.messages == (SYSTEM, USER) and told.prompt == "user: by user"
    assert of({"prompt": [SYSTEM | {"content": "own"}, USER]}, tmp_path, system="x").messages[0]["content"] == "own"
    assert of({"question": "by user"}, tmp_path, chat=True).messages == (USER,)
    assert of({"question": "by user"}, tmp_path, system="by system").messages == (SYSTEM, USER)
    assert of({"question": "by user"}, tmp_path).messages == ()


def test_answers(tmp_path: Path) -> None:
    assert of({"prompt": "p", "answer": 72}, tmp_path).answers == ["72"]
    assert of({"prompt": "p", "answers": ["a", "b", ""]}, tmp_path).answers == ["a", "b"]
    assert of({"prompt": "p", "reference": None}, tmp_path).answers == []
    problem = of({"prompt": "p", "gold": "x", "kind": "k"}, tmp_path, reference="gold", category="kind")
    assert (problem.answer, problem.category, problem.fields) == ("x", "k", {"gold": "x", "kind": "k"})
    task, several = TextTask(), of({"prompt": "p", "answers": ["a", "b"]}, tmp_path)
    assert [task.check(several, text) for text in (" b\n", "c", "")] == [Outcome.CORRECT, Outcome.WRONG, Outcome.WRONG]


def test_columns_travel_with_the_problem_through_the_run_folder(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "day": date(2025, 1, 2), "picture": b"\x00", "list": [{"a": 1}]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    problems = TextTask().load(tmp_path / "a.parquet").problems
    assert problems[0].fields == {"day": "2025-01-02", "list": [{"a": 1}]}
    chat = Problem("user: hi", "a", messages=(USER,), alternatives=("b",), fields={"x": [1]})
    write_problems(tmp_path / "kept.jsonl", [*problems, chat])
    assert read_problems(tmp_path / "kept.jsonl") == [*problems, chat]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl: holds no row"),
        ("a.jsonl", "\n \n", "a.jsonl: holds no row"),
        ("a.jsonl", '{"prompt": "x"}\n\n{bad\n', "a.jsonl:3: is not JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: is not JSON"),
        ("a.jsonl", "3\n", "a.jsonl:1: expected an object with columns, found int"),
        ("a.jsonl", '{"text": "x"}', "a.jsonl:1: has no column 'prompt' or 'messages' or 'question'; it has 'text'"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}', "a.jsonl:2: 'prompt' is int 3: expected text, or a chat"),
        ("a.jsonl", '{"prompt": " "}', "a.jsonl:1: 'prompt' is empty"),
        ("a.jsonl", '{"prompt": null}', "a.jsonl:1: 'prompt' is NoneType None"),
        ("a.jsonl", '{"prompt": []}', "a.jsonl:1: 'prompt' is a chat without messages"),
        ("a.jsonl", '{"prompt": ["hi"]}', "a.jsonl:1: 'prompt': message 1 is str 'hi': expected"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}', "message 1 is dict {'role': 'user'}: expected"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "an assistant's message alone"),
        ("a.jsonl", '{"prompt": "x", "answer": {"a": 1}}', "a.jsonl:1: 'answer' is dict {'a': 1}: expected text, a"),
        (
            "a.jsonl",
            r'{"prompt": "\ud800"}',
            r"a.jsonl:1: 'prompt' holds half of a character (a lone surrogate): str '\ud800'",
        ),
        ("a.jsonl", r'{"prompt": "x", "y": [{"z": "\udfff"}]}', "a.jsonl:1: 'y' holds half of a character"),
        ("a.json", '{"a": 1}', "a.json: expected a list of objects"),
        ("a.json", "[{", "a.json: is not JSON"),
        ("a.json", "[1]", "a.json: row 1: expected an object"),
        ("a.csv", "prompt,prompt\n1,2\n", "a.csv:1: names column 'prompt' twice"),
        ("a.csv", 'prompt\n"open', "a.csv:2: is not CSV: unexpected end of data"),
        ("a.csv", "prompt,answer\nx\n", "a.csv:2: has 1 cells, but the first line names 2 columns"),
        ("a.csv", "prompt\n", "a.csv: holds no row"),
        ("a.parquet", "no parquet", "a.parquet: cannot be read: Arrow"),
        ("a.xlsx", "x", "a.xlsx: its name does not say how to read it: expected .jsonl"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        TextTask().load(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_problems_know_their_line_or_row(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    found = TextTask().load(tmp_path / name, for_training=True).problems
    lines = {".csv": [2, 4], ".tsv": [2, 4]}.get((tmp_path / name).suffix, [1, 2])  # a prompt of two lines
    assert [problem.line for problem in found] == lines


def test_a_file_of_one_row_cannot_be_split_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "x"}')
    section = TaskSection(name="text", train=ProblemSource(file=str(tmp_path / "one.jsonl")))
    with pytest.raises(UserError, match=r"^task\.test: .*/one\.jsonl: nothing can be held out of 1 problems"):
        load_splits(TextTask(), section)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b'{"prompt": "x"}\n{"prompt": "\xff"}')
    (tmp_path / "empty").mkdir()
    for source, message in {
        "none.jsonl": "no such file",
        "bytes.jsonl": r"bytes\.jsonl:2: holds the byte 0xff at 13, which is not UTF-8 text",
        "empty": "is a folder, but not of a data set",
        "what?": "no such file; a data set of the Hugging Face Hub is owner/name",
    }.items():
        with pytest.raises(UserError, match=message):
            TextTask().load(tmp_path / source)
    with pytest.raises(UserError, match=r"has no column 'gold' \(task.options.reference\); it has 'prompt'"):
        of({"prompt": "x"}, tmp_path, reference="gold")


@pytest.mark.parametrize("options", [{"prompt": 3}, {"chat": "yes"}, {"system": ["x"]}, {"nonsense": 1}])
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"task.options"):
        load_task("text", options)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS[:7]), st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str, data: st.DataObject) -> None:
    write(tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (tmp_path / name).write_bytes(content)
    try:
        assert TextTask().load(tmp_path / name).problems
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


def test_the_librarys_bars_and_levels_are_put_back(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    before = datasets.logging.get_verbosity()
    list(records.read_records(str(tmp_path / "a.parquet"), "train"))
    assert datasets.logging.get_verbosity() == before
