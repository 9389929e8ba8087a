"""YAML files and values: what is read, what is refused, and how little it takes to find out."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bgrpo.config import TaskSection, TrainConfig, build_config, load_config
from bgrpo.errors import UserError
from bgrpo.settings import spelling, strict_yaml
from bgrpo.settings.strict_yaml import MAX_BYTES, MAX_DEPTH, Plain, dump_yaml, parse_yaml, plain_value, read_yaml
from bgrpo.settings.typed import settle

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cc", "Cs"]))
    | st.sampled_from(["1e5", "010", "yes", "0x1F", "1_000", ".nan", "null", "", "~", "1:30", "2026-01-01", "- a",
    "a: b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab01.-", min_size=1, max_size=4), inner,
    max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(params=["C", "Python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers of PyYAML; not every installation has the fast one."""
    if request.param == "Python":
        monkeypatch.setattr(strict_yaml, "_PARSER", yaml.SafeLoader)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("-5", -5), ("+5", 5), ("0", 0), ("1e-4", 1e-4), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("true",
     True),
     ("False", False), ("null", None), ("~", None), ("", None), ("nan", "nan"), ("inf", "inf"), ("2026-01-01",
     "2026-01-01"),
     ("1,000", "1,000"), ("y", "y"), ("None", "None"), ("0.5.1", "0.5.1"), ("12:x", "12:x"), ("0", 0), ("-", "-"),
     ("1e", "1e")],
)  # fmt: skip
def test_scalars_that_all_readers_read_alike(text: str, value: Any) -> None:
    found = plain_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["010", "-010", "00", "0_1", "01.5", "0x1F", "0b11", "0o17", "1_000", "1_0.5", "1:30", "190:20:30", "yes", "No",
     "ON", "off",
     ".inf", "-.INF", ".nan", "1e999", "-1e400", "9" * 41, "9" * 5000],
)  # fmt: skip
def test_scalars_that_readers_differ_about_are_refused_where_no_text_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"two ways|larger than any number"):
        plain_value(text)
    for override in (
        f"steps={text}",
        f"learner.beta={text}",
        f"task.options.x={text}",
        f"evaluation.beam_widths=[{text}]",
    ):
        with pytest.raises(UserError, match=r"two ways|larger than any number"):
            load_config(TrainConfig, None, [override])
    assert load_config(TrainConfig, None, [f"run.name={text}"]).run.name == text, "text is taken as it stands"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given again, first in line 1"),
        ("a: {b: 1, b: 2}\n", "line 1: the key 'b' is given again"),
        ("a: 1\n'a': 2\n", "line 2: the key 'a' is given again"),
        ("a: !!int 5\n", "line 1: tags"),
        ("a: !!python/object/apply:os.mkdir ['made']\n", "tags"),
        ("a: !!binary aGk=\n", "tags"),
        ("!!map {a: 1}\n", "tags"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "line 2: '<<' is no key"),
        ("~: 1\n", "'~' is no key"),
        ("? \n: 1\n", "'' is no key"),
        ("[a]: 1\n", "expected a key that is text"),
        ("{a: 1}: 1\n", "expected a key that is text"),
        ("a: *x\n", "\\*x stands for nothing|undefined alias"),
        ("a: &x [*x]\n", "\\*x stands for nothing"),
        (BOMB, "line [67]: more than 200000 values"),
        (CHAIN, f"line {MAX_DEPTH}: nested more than {MAX_DEPTH} levels"),
        ("a: " + "[" * 30000, "nest"),
        ("a: " + "{a: " * 30000, "nest"),
        ("".join(" " * i + f"a{i}:\n" for i in range(500)), "nest"),
        ("a: 1\n---\nb: 1\n", "line 2: a second document begins"),
        ("a: [1\n", "cannot be read as YAML: line"),
        ("a: \x00\n", "cannot be read as YAML"),
        ("a:\t- b\n  c\n", "cannot be read as YAML"),
        ("", "holds nothing"),
        ("# only a comment\n", "holds nothing"),
        ("---\n", "holds nothing"),
        ("null\n", "found a single value"),
        ("5\n", "found a single value"),
        ("- a\n", "found a list"),
    ],
    ids=range(29),
)  # fmt: skip
def test_what_a_file_may_not_hold(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as told:
        read_yaml(path)
    assert str(told.value).startswith(f"{path}: ") and str(told.value).isprintable()
    assert not Path("made").exists()


def test_anchors_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text("task:\n  train: {options: &o {x: [1, 2]}}\n  test: {options: *o}\n")
    task = load_config(TrainConfig, str(path)).task
    assert task.train.options == task.test.options == {"x": [1, 2]}
    path.write_text("task:\n  train: &t {count: 7}\n  test: *t\n")
    task = load_config(TrainConfig, str(path), ["task.train.count=9"]).task
    assert (task.train.count, task.test.count) == (9, 7), "an override changes what it names, and nothing else"


@pytest.mark.parametrize("content", ["\ufeffsteps: 7\n".encode(), b"steps: 7\r\n", b"%YAML 1.2\n---\nsteps: 7\n...\n"])
def test_other_ways_to_write_the_same_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    assert load_config(TrainConfig, str(tmp_path / "file.yaml")).steps == 7


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_bytes("run: {name: é}\n".encode(encoding))
    with pytest.raises(UserError, match=r"file\.yaml: cannot be read as YAML"):
        read_yaml(tmp_path / "file.yaml")


def make_special(kind: str, folder: Path) -> Path:
    path = folder / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(folder / "nowhere")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(500 * 2**20)  # takes no room on the disk
    elif kind == "unreadable":
        path = Path("/proc/self/mem")
    else:
        path = Path("/dev") / kind
    return path


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "dangling", "huge", "unreadable", "zero", "null", "tty"])
def test_what_is_no_small_regular_file_is_refused_without_being_read(kind: str, tmp_path: Path) -> None:
    path = make_special(kind, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as told:
        load_config(TrainConfig, str(path))
    assert str(path) in str(told.value) and str(told.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024, "KiB"


def test_the_bound_of_a_file_is_on_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("# " + "x" * MAX_BYTES + "\nsteps: 7\n")
    with pytest.raises(UserError, match=f"expected at most {MAX_BYTES:,}"):
        read_yaml(path)
    path.write_text("# " + "x" * (MAX_BYTES - 20) + "\nsteps: 7\n")
    assert load_config(TrainConfig, str(path)).steps == 7


def test_many_unknown_keys_cost_few_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first three are told, with the number of the others; only these are compared with the known ones."""
    path, compared = tmp_path / "many.yaml", []
    original = spelling._distance
    monkeypatch.setattr(spelling, "_distance", lambda *pair: compared.append(pair) or original(*pair))
    path.write_text("".join(f"key{i}: {i}\n" for i in range(20_000)) + f"{'k' * 1000}: 1\n")
    with pytest.raises(UserError, match=r"unknown key 'key0'; unknown key 'key1'; unknown key 'key2'; and 19998 more$"):
        load_config(TrainConfig, str(path))
    assert len(compared) < 1000
    with pytest.raises(UserError, match="unknown key 'kkk"):
        load_config(TrainConfig, None, [f"{'k' * 100_000}=1"])
    assert len(compared) < 1000, "a very long name is compared with none"


@given(st.dictionaries(st.text("abc012.", min_size=1, max_size=4), PLAIN, max_size=4))
def test_what_is_dumped_is_read_again(options: dict[str, Any]) -> None:
    section = build_config(TaskSection, {"options": options}, "test")
    tree = settle(parse_yaml(dump_yaml(section.model_dump(mode="json")), "test"), TaskSection, "test")
    again = build_config(TaskSection, tree, "test")
    assert again == section and repr(again) == repr(section), "types included"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_a_dumped_text_is_that_text(text: str) -> None:
    parsed = parse_yaml(dump_yaml({"a": text}), "test")["a"]
    assert parsed == text
    assert not isinstance(parsed, Plain) or plain_value(parsed) == text


def test_files_that_were_dumped_by_other_writers_load(tmp_path: Path) -> None:
    """Runs of before wrote their configuration with PyYAML's own writer."""
    config = build_config(
        TrainConfig,
        {
            "run": {"name": "2026"},
            "learner": {"learning_rate": 1e-5},
            "task": {"options": {"a": "yes", "b": [1.5, None]}},
        },
        "test",
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    assert load_config(TrainConfig, str(path)) == config
