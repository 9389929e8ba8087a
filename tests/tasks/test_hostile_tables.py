"""CSV, JSON, Parquet and saved data sets can hold anything: used, or refused in one line, nothing waited for."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import datasets
import pytest
from hostile_files import mutated

from bgrpo.errors import MAX_MESSAGE, UserError
from bgrpo.tasks.text.task import TextTask

ROWS = [{"prompt": f"p{number}", "answer": f"a{number}", "n": number, "x": [number]} for number in range(12)]
MUTATIONS = 60  # of each file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, data = tmp_path_factory.mktemp("tables"), datasets.Dataset.from_list(ROWS)
    data.to_parquet(folder / "a.parquet")
    data.remove_columns("x").to_csv(folder / "a.csv")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "a.json").write_text(json.dumps({"data": ROWS}))
    data.save_to_disk(folder / "saved")
    datasets.DatasetDict(train=data, other=data.select([0])).save_to_disk(folder / "splits")
    return folder


FILES = [
    "a.parquet",
    "a.csv",
    "a.jsonl",
    "a.json",
    *(f"saved/{name}" for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")),
    *(f"splits/{name}" for name in ("dataset_dict.json", "train/data-00000-of-00001.arrow", "train/state.json")),
]


def used(whole: Path, name: str) -> bool:
    """Whether it is read; False where one line refuses it."""
    try:
        return bool(TextTask().load(whole / name.split("/")[0], for_training=True).problems)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) <= MAX_MESSAGE, str(error)[:3000]
        return False


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_table_is_used_or_refused_in_one_line(name: str, whole: Path) -> None:
    """An Arrow file that is cut off, or whose offsets lead nowhere, would end the process by a signal."""
    path = whole / name
    content, refused = path.read_bytes(), 0
    try:
        for seed in range(MUTATIONS):
            draw = random.Random(seed)
            cut = content[: draw.randrange(len(content))]
            path.write_bytes(mutated(content, draw) if seed % 3 else cut)
            refused += not used(whole, name)
    finally:
        path.write_bytes(content)
    assert refused and used(whole, name)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_waited_for_in_the_place_of_a_file(name: str, whole: Path) -> None:
    path = whole / name
    content = path.read_bytes()
    for put in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere")):
        path.unlink()
        put(path)
        assert not used(whole, name)
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["../a.parquet", "/dev/zero", "", "..", 3, None, ["a"], {"b": "c"}])
@pytest.mark.parametrize(("file", "key"), [("saved/state.json", "_data_files"), ("splits/dataset_dict.json", "splits")])
def test_a_data_set_names_nothing_outside_its_folder(name: object, file: str, key: str, whole: Path) -> None:
    path = whole / file
    content = path.read_bytes()
    listed = [{"filename": name}] if key == "_data_files" else [name]
    try:
        path.write_text(json.dumps(json.loads(content) | {key: listed}))
        with pytest.raises(UserError, match="expected names in its own folder"):
            TextTask().load(path.parent)
    finally:
        path.write_bytes(content)
