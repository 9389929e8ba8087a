from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bgrpo.errors import UserError
from bgrpo.runs.checkpoints import MARKER, CheckpointStore

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
    assert json.loads((path / MARKER).read_text())["files"] == {"policy/weights": 1, "state": 2}


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


def remove_marker(path: Path) -> None:
    (path / MARKER).unlink()


def cut_marker(path: Path) -> None:
    (path / MARKER).write_text((path / MARKER).read_text()[:20])


def foreign_marker(path: Path) -> None:
    (path / MARKER).write_text("[1]")


def cut_file(path: Path) -> None:
    (path / "state").write_text("x")


def remove_file(path: Path) -> None:
    (path / "policy" / "weights").unlink()


@pytest.mark.parametrize("damage", [remove_marker, cut_marker, foreign_marker, cut_file, remove_file])
def test_incomplete_checkpoints_are_skipped_and_said(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    older = store.save(1, writer("x"), {"score": 1.0})
    newer = store.save(2, writer("x"), {"score": 2.0})
    damage(newer)
    with caplog.at_level(logging.WARNING):
        assert store.latest() == older
    assert store.best("score") == older
    assert f"{newer}: incomplete checkpoint" in caplog.text


def test_a_killed_writer_leaves_no_checkpoint_and_no_obstacle(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    older = store.save(1, writer("x"))
    script = (
        "import os, signal, sys; from pathlib import Path; from bgrpo.runs.checkpoints import CheckpointStore\n"
        "def write(folder): (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "CheckpointStore(Path(sys.argv[1])).save(2, write)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, timeout=60)
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 2
    assert store.latest() == older
    store.save(2, writer("y"))
    assert steps(store) == [1, 2]


def test_a_foreign_folder_name_and_keep_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a name like step-00000050"):
        CheckpointStore.step_of(tmp_path / "checkpoint-50")
    with pytest.raises(UserError, match=r"checkpoint\.keep=0"):
        CheckpointStore(tmp_path, keep=0)
