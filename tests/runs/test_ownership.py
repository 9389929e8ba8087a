"""One owner per folder: between processes, machines and file systems without locks; who lost it writes no more."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from bgrpo.config import TrainConfig, load_config
from bgrpo.errors import LostRunError, UserError
from bgrpo.runs import ownership
from bgrpo.runs.ownership import FOLDER, STALE_S, Claim, Owner, check_free, has_owner, newest_owner, own
from bgrpo.runs.run_folder import RunFolder

HOLD = "import sys, time; from pathlib import Path; from bgrpo.runs.ownership import own\n"
HOLD += "with own(Path(sys.argv[1]), 'run x') as claim: print(claim.owner.number, flush=True); time.sleep(60)"


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that owns the folder until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip().isdecimal()
            yield process
        finally:
            process.kill()


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_numbers_go_up_and_an_owner_that_ended_leaves_no_heartbeat(tmp_path: Path) -> None:
    assert not has_owner(tmp_path)
    for number in (1, 2, 3):
        with own(tmp_path, "run x") as claim:
            assert claim.owner.number == number and has_owner(tmp_path)
            claim.check()
        assert not has_owner(tmp_path)
    assert newest_owner(tmp_path) == claim.owner


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_living_process_is_named_and_a_killed_one_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    with another_process(tmp_path) as process:
        with pytest.raises(UserError, match=rf"^run x belongs to process {process.pid} on \S+ since 20.*then resume$"):
            own(tmp_path, "run x").__enter__()
        with pytest.raises(UserError, match=f"^run x belongs to process {process.pid} on"):
            check_free(tmp_path, "run x")
        assert has_owner(tmp_path)
        process.kill()
        process.wait(10)
        assert not has_owner(tmp_path)
        check_free(tmp_path, "run x")
        with own(tmp_path, "run x") as claim:
            assert claim.owner.number == 2


def test_two_owners_in_one_process_are_two(tmp_path: Path) -> None:
    with own(tmp_path, "run x"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        own(tmp_path, "run x").__enter__()


def elsewhere(folder: Path, age_s: float) -> Owner:
    """An owner on another machine, whose last sign of life is so old."""
    owner = dataclasses.replace(Owner.here(1), host="node7", machine="another")
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "00000001.json").write_text(json.dumps(dataclasses.asdict(owner)))
    last_beat(folder, age_s)
    return owner


def last_beat(folder: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(folder / FOLDER / "00000001.json", (then, then))


def test_those_that_only_look_stand_in_nobodys_way(tmp_path: Path) -> None:
    """Two ``--resume`` of a finished run look at the same moment, and both are told that it has finished."""
    with own(tmp_path, "run x"):
        pass
    refused: list[UserError] = []

    def look() -> None:
        for _ in range(30):
            try:
                check_free(tmp_path, "run x")
            except UserError as error:
                refused.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    with own(tmp_path, "run x"):  # nor in that of who owns it then
        pass
    for thread in threads:
        thread.join()
    assert all("belongs to process" in str(error) for error in refused)
    refused.clear()
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []


def test_another_machines_owner_lives_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    owner = elsewhere(tmp_path, STALE_S / 2)
    with pytest.raises(UserError, match=r"on node7 since .*, whose last sign of life is (29|3\d) s old"):
        own(tmp_path, "run x").__enter__()
    assert has_owner(tmp_path)
    last_beat(tmp_path, STALE_S + 1)
    assert not has_owner(tmp_path)
    lost = Claim(tmp_path, owner)
    lost.check()
    with own(tmp_path, "run x") as claim:
        assert claim.owner.number == 2
        with pytest.raises(LostRunError, match=rf"process {os.getpid()} on .* has taken .* over from .*node7"):
            lost.check()
        claim.check()


def test_of_many_that_come_at_once_without_locks_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    ready, over, owners, refused = threading.Barrier(8), threading.Event(), [], []

    def claim() -> None:
        ready.wait()
        try:
            with own(tmp_path, "run x") as mine:
                owners.append(mine.owner.number)
                over.wait(30)
        except UserError as error:
            refused.append(str(error))
        if len(refused) == 7:
            over.set()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert owners == [1] and len(refused) == 7


DAMAGE = {"empty": "", "{": "{", "list": "[1]", "number alone": '{"number": 1}', "deep": "[" * 50_000, "zero": "\x00"}
DAMAGE |= {
    str(changed)[:60]: json.dumps(asdict(Owner.here(1)) | changed)
    for changed in (
        {"started": "x"}, {"started": None}, {"started": 1e300}, {"started": float("nan")}, {"started": True},
        {"pid": "1"}, {"pid": 10**400}, {"pid": -1}, {"pid": 0}, {"pid": 2.5}, {"number": "1"}, {"number": True},
        {"host": 3}, {"host": "a\x1b[2J"}, {"machine": []}, {"since": {}}, {"token": None}, {"new": 1},
    )
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_stands_in_the_way_as_long_as_somebody_may_be_writing_it(tmp_path: Path, content: str) -> None:
    with own(tmp_path, "run x"):
        pass
    (tmp_path / FOLDER / "00000001.json").write_text(content)
    (tmp_path / FOLDER / "later.json").write_text(content)
    with pytest.raises(UserError, match="belongs to a process that has not said yet who it is"):
        own(tmp_path, "run x").__enter__()
    last_beat(tmp_path, STALE_S + 1)
    with own(tmp_path, "run x") as claim:
        assert claim.owner.number == 2


def replaced_by_another_run(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    own(folder, "run x").__enter__()


LOSSES: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "moved away": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "emptied": lambda folder: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in folder.iterdir()],
    "replaced": replaced_by_another_run,
    "a file instead": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
}
WRITES: dict[str, Callable[[RunFolder], object]] = {
    "status": lambda run: run.update(status="finished"),
    "metrics": lambda run: run.append_metrics(1, {"kl": 0.0}),
    "truncation": lambda run: run.truncate_after(0),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("write", WRITES)
def test_a_folder_that_has_gone_is_noticed_at_the_next_write_and_nothing_is_written(
    tmp_path: Path, loss: str, write: str
) -> None:
    made = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=x"]), None)
    with made.owned() as run:
        run.update(status="running")
        LOSSES[loss](run.path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(LostRunError, match="was removed or replaced"):
            WRITES[write](run)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_run_json_that_has_gone_alone_is_no_new_one(tmp_path: Path) -> None:
    made = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=x"]), None)
    with made.owned() as run:
        (run.path / "run.json").unlink()
        with pytest.raises(LostRunError, match=r"run\.json: was removed"):
            run.update(status="finished")
        assert not (run.path / "run.json").exists()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Semaphore(0)
    monkeypatch.setattr(ownership, "BEAT_S", 0.001)
    monkeypatch.setattr(os, "utime", lambda path, times=None: beats.release())
    with own(tmp_path, "run x"):
        assert all(beats.acquire(timeout=240) for _ in range(3))


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be written"):
        own(tmp_path, "run x").__enter__()


def test_a_run_whose_owner_was_killed_is_called_interrupted(tmp_path: Path) -> None:
    run = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=x"]), None)
    assert run.status == "running"  # of an earlier bgrpo, which knew no owners
    with another_process(run.path) as process:
        assert run.status == "running"
        process.kill()
        process.wait(10)
        assert run.status == "interrupted" and run.info()["status"] == "running"
        run.update(status="finished")
        assert run.status == "finished"
