from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from bgrpo.errors import LostRunError, UserError
from bgrpo.runs.checkpoints import MARKER, CheckpointStore, find_damage, read_marker

REPOSITORY = Path(__file__).resolve().parents[2]


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_text(text)
        (folder / "state").write_text(text * 2)

    return write


def steps(store: CheckpointStore) -> list[int]:
    return sorted(store.step_of(path) for path in store.directory.iterdir())


def test_saved_files_and_metrics_come_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.save(50, writer("a"), {"score": 0.5})
    assert path.name == "step-00000050" and store.step_of(path) == 50
    assert CheckpointStore(tmp_path / "checkpoints").latest() == path
    assert (path / "policy" / "weights").read_text() == "a"
    assert store.metrics(path) == {"score": 0.5}
    files = json.loads((path / MARKER).read_text())["files"]
    assert {name: entry["bytes"] for name, entry in files.items()} == {"policy/weights": 1, "state": 2}
    assert files["state"]["sha256"] == hashlib.sha256(b"aa").hexdigest()


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "absent")
    assert store.latest() is None and store.best("score") is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.2), (4, float("nan")), (5, 0.3)]:
        store.save(step, writer("x"), {"score": score}, best_key="score")
    assert steps(store) == [2, 4, 5]
    best = store.best("score")
    assert best is not None and store.step_of(best) == 2
    assert store.best("unknown") is None


def test_a_newer_equal_score_is_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        store.save(step, writer("x"), {"score": 0.5}, best_key="score")
    assert steps(store) == [3]


def test_without_a_metric_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (8, 9, 10, 100):
        store.save(step, writer("x"))
    assert steps(store) == [10, 100]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer("old"))
    path = store.save(1, writer("new"))
    assert (path / "state").read_text() == "newnew"


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path, failure: Exception) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    older = store.save(1, writer("x"))

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise failure

    with pytest.raises(UserError, match=r"step-00000002.*No space left on device.*older checkpoints are untouched"):
        store.save(2, write)
    assert store.latest() == older and store.is_complete(older)
    assert list(tmp_path.iterdir()) == [older]


def test_a_disk_that_fills_while_marking_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    older = store.save(1, writer("x"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        store.save(2, writer("y"))
    assert store.latest() == older


def test_a_bug_in_the_writer_surfaces_as_itself(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def write(folder: Path) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        store.save(1, write)
    assert list(tmp_path.iterdir()) == []


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first bit": lambda path: flip(path, 0),
    "a bit": lambda path: flip(path, 8 * (path.stat().st_size // 2) + 3),
    "last bit": lambda path: flip(path, 8 * path.stat().st_size - 1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half zeroed": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2].ljust(path.stat().st_size, b"\0")
    ),
    "missing": lambda path: path.unlink(),
    "another file beside": lambda path: path.with_name("further.safetensors").write_bytes(b"x"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe{"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[1]"),
    "an object": lambda path: path.write_text("{}"),
}
FILES = ["policy/weights", "state", "numbers.json", MARKER]


def whole(folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / "policy" / "weights").write_bytes(bytes(range(256)) * 8)
    (folder / "state").write_bytes(b"moments" * 100)
    (folder / "numbers.json").write_text('{"seed": 1}')


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file_is_noticed_and_the_older_checkpoint_taken(
    tmp_path: Path, damage: str, name: str
) -> None:
    store = CheckpointStore(tmp_path, required=["state"])
    older, newer = (store.save(step, whole, {"score": float(step)}) for step in (1, 2))
    assert CheckpointStore(tmp_path).latest() == newer
    DAMAGES[damage](newer / name)
    told: list[str] = []
    again = CheckpointStore(tmp_path, required=["state"])
    assert again.latest(told.append) == older and again.best("score") == older
    (line,) = told
    assert re.fullmatch(
        r".*: checkpoint of step 2 is damaged \(.+\), passed over: going on from step 1", line, re.DOTALL
    )
    again.save(3, whole)
    assert steps(again) == [1, 3], "what was passed over stands in nobody's way"
    assert again.latest() == tmp_path / "step-00000003"


@pytest.mark.parametrize("instead", ["file", "pipe", "link to a folder", "link to nowhere", "link to a checkpoint"])
def test_what_stands_in_the_place_of_a_checkpoint_is_passed_over_and_goes(tmp_path: Path, instead: str) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    older, newer = (store.save(step, whole) for step in (1, 2))
    kept = newer.rename(tmp_path / "elsewhere")
    if instead == "file":
        newer.write_text("x")
    elif instead == "pipe":
        os.mkfifo(newer)
    else:
        newer.symlink_to({"link to a folder": tmp_path, "link to nowhere": "nowhere"}.get(instead, kept))
    again = CheckpointStore(tmp_path / "checkpoints", keep=1)
    assert again.latest() == (newer if instead == "link to a checkpoint" else older)
    again.save(3, whole)
    assert steps(again) == [3]
    assert find_damage(kept.rename(tmp_path / "step-00000002")) == "", "what a link names is somebody else's"


def test_every_bit_of_the_marker_counts(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(7, writer("x"), {"score": 0.5, "used/tokens": 12.0})
    content = (path / MARKER).read_bytes()
    for bit in range(0, 8 * len(content), 13):
        flip(path / MARKER, bit)
        with pytest.raises(ValueError):
            read_marker(path)
        flip(path / MARKER, bit)
    assert (path / MARKER).read_bytes() == content and find_damage(path) == ""


def test_a_checkpoint_under_another_name_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    older = store.save(1, whole)
    store.save(2, whole).rename(tmp_path / "step-00000009")
    assert store.latest() == older


def test_where_all_are_damaged_a_line_says_why(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        flip(store.save(step, whole) / "state", 5)
    with pytest.raises(
        UserError, match=r"step 2 is damaged \(state .*step 1 is damaged \(state .*none is left"
    ) as caught:
        CheckpointStore(tmp_path).latest()
    assert "\n" not in str(caught.value)


def test_a_file_that_must_be_there_was_never_written(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(1, writer("x"))
    with pytest.raises(UserError, match=r"optimizer\.pt is not part of it"):
        CheckpointStore(tmp_path, required=["optimizer.pt"]).latest()


def test_checkpoints_without_digests_are_taken_by_their_sizes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    older, newer = store.save(1, whole), store.save(2, whole)
    for path in (older, newer):
        marker = json.loads((path / MARKER).read_text())
        sizes = {name: entry["bytes"] for name, entry in marker["files"].items()}
        (path / MARKER).write_text(json.dumps({"step": marker["step"], "files": sizes, "metrics": {}}, indent=1))
    assert CheckpointStore(tmp_path).latest() == newer
    os.truncate(newer / "state", 3)
    assert CheckpointStore(tmp_path).latest() == older


def test_only_the_owner_writes(tmp_path: Path) -> None:
    owned = [True]

    def check() -> None:
        if not owned[0]:
            raise LostRunError("taken over")

    store = CheckpointStore(tmp_path, check_owner=check)
    store.save(1, writer("x"))

    def write_and_lose(folder: Path) -> None:
        writer("y")(folder)
        owned[0] = False

    for write in (write_and_lose, writer("z")):
        with pytest.raises(LostRunError):
            store.save(2, write)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be written"):
        CheckpointStore(tmp_path / "gone" / "checkpoints").save(1, writer("x"))
    assert not (tmp_path / "gone").exists()


def test_a_killed_writer_leaves_no_checkpoint_and_no_obstacle(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    older = store.save(1, writer("x"))
    script = (
        "import os, signal, sys; from pathlib import Path; from bgrpo.runs.checkpoints import CheckpointStore\n"
        "def write(folder): (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "CheckpointStore(Path(sys.argv[1])).save(2, write)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, timeout=240)
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 2
    assert store.latest() == older
    store.save(2, writer("y"))
    assert steps(store) == [1, 2]


def test_a_foreign_folder_name_and_keep_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a name like step-00000050"):
        CheckpointStore.step_of(tmp_path / "checkpoint-50")
    with pytest.raises(UserError, match=r"checkpoint\.keep=0"):
        CheckpointStore(tmp_path, keep=0)


def test_checkpoints_that_have_gone_are_missed(tmp_path: Path) -> None:
    """A run that had some does not begin again as if it never had."""
    directory, told = tmp_path / "checkpoints", []
    store = CheckpointStore(directory, keep=2)
    for step in (3, 6, 9):
        store.save(step, writer("x"))
    shutil.rmtree(directory / "step-00000009")
    newest = CheckpointStore(directory).latest(told.append)
    assert newest is not None and store.step_of(newest) == 6
    assert told == [f"{directory / 'step-00000009'}: the newest checkpoint has gone: going on from step 6"]
    for remove in (lambda: shutil.rmtree(directory / "step-00000006"), lambda: shutil.rmtree(directory)):
        remove()
        with pytest.raises(UserError, match=r"step-00000009: the run saved this checkpoint, and it has gone, as has"):
            CheckpointStore(directory).latest()
    CheckpointStore(directory).save(4, writer("x"))  # gone on with all the same
    assert CheckpointStore(directory).latest(told.append) == directory / "step-00000004" and len(told) == 1


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"step": "x"}', b'{"step": -1}', b'{"step": 1e99}', b"\xff"])
def test_a_damaged_record_of_the_newest_checkpoint_is_none(record: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoints-newest.json").write_bytes(record)
    assert CheckpointStore(tmp_path / "checkpoints").latest() is None


STRAY = [".DS_Store", "._state", ".nfs00000001", ".state.swp", "#state#", "state~", "numbers.json.bak", "numbers.json~",
         "numbers (1).json", "Thumbs.db", "desktop.ini", "notes.md", "state.orig", ".git/HEAD",
         ".ipynb_checkpoints/numbers.json", "__MACOSX/policy/weights", "policy copy/config.json"]  # fmt: skip
READ = ["adapter_config.json", "generation_config.json", "chat_template.jinja", "model.safetensors", "rng_state.pth",
        "model.safetensors.index.json", "rollouts.json", "policy/config.json", "reference/config.json",
        "pytorch_model.bin"]  # fmt: skip


@pytest.mark.parametrize("name", STRAY)
def test_files_that_nobody_reads_are_no_damage(tmp_path: Path, name: str) -> None:
    """Desktops, editors and network file systems leave files everywhere; the marker says which count."""
    store, told = CheckpointStore(tmp_path, keep=1), []
    newer = store.save(1, whole)
    (newer / name).parent.mkdir(parents=True, exist_ok=True)
    (newer / name).write_bytes(b"x")
    assert CheckpointStore(tmp_path).latest(told.append) == newer and told == []
    CheckpointStore(tmp_path, keep=1).save(2, whole)
    assert steps(store) == [2]


@pytest.mark.parametrize("name", READ)
def test_files_that_somebody_reads_are(tmp_path: Path, name: str) -> None:
    store, told = CheckpointStore(tmp_path), []
    older, newer = (store.save(step, whole) for step in (1, 2))
    (newer / name).parent.mkdir(exist_ok=True)
    (newer / name).write_bytes(b"x")
    assert CheckpointStore(tmp_path).latest(told.append) == older
    assert f"step 2 is damaged ({name} is not part of it)" in told[0]


def test_a_checkpoint_that_cannot_be_deleted_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Network file systems keep a file that is open somewhere."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, whole)

    remove = shutil.rmtree

    def busy(path: Path, **options: Any) -> None:
        if Path(path).name == "step-00000001":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", busy)
    newer = store.save(2, whole)
    assert "step-00000001: is not needed any more, and cannot be deleted (Directory not empty)" in caplog.text
    monkeypatch.undo()
    assert CheckpointStore(tmp_path).latest() == newer and not (tmp_path / "step-00000001" / MARKER).exists()
