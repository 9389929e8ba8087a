"""Files that are complete or absent."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bgrpo.errors import UserError
from bgrpo.files import (
    UNFINISHED,
    atomic_file,
    atomic_path,
    check_target,
    open_file,
    open_to_append,
    parse_object,
    seal,
    unseal,
    write_atomically,
)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["x" * 20_000, b"x" * 20_000])
def test_a_disk_that_fills_while_writing_keeps_the_old_file(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a write beyond really fails
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def make_folder(path: Path, text: str) -> None:
    with atomic_path(path) as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "file").write_text(text)


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        make_folder(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "inner" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_every_file_and_folder_is_synced_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, target = os.fsync, tmp_path / "folder"

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append(path.name)
        assert target.exists() == (path == tmp_path), "the name is given between the parts and their parent"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    make_folder(target, "x")
    assert sorted(synced[:-1]) == ["file", "inner", "new"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_folder_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    make_folder(tmp_path / "folder", "old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        make_folder(tmp_path / "folder", "new")
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "folder", "old")
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", "new")
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_process_that_is_killed_in_between_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from bgrpo.files import write_atomically\n"
        "die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(os, sys.argv[2], die)\n"
        "write_atomically(Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), call], timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = [other.name for other in tmp_path.iterdir() if other != path]
    assert left.startswith(UNFINISHED)


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_can_be_read_by_all(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file:
        file.write("⁇")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text("utf-8") == "⁇"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_targets_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    check_target(tmp_path / "new", "--out")
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"
    with pytest.raises(UserError, match=r"--out .*is a folder"):
        check_target(tmp_path, "--out")
    check_target(tmp_path / "made" / "too" / "file", "--out")
    assert (tmp_path / "made" / "too").is_dir()
    with pytest.raises(UserError, match="cannot be written"):
        check_target(Path("/proc/file"), "--out")


SEALED = [
    '{"step": 1}',
    '{"a": [1.5, null, "x"], "b": {"crc32": "0"}}',
    '{\n "status": "ran"\n}\n',
    '{"t": "é\U0001f600"}',
]


@pytest.mark.parametrize("text", SEALED)
def test_whatever_changes_a_sealed_text_is_noticed(text: str) -> None:
    """No flipped bit, cut or insertion gives another object."""
    tree = parse_object(text)
    sealed = seal(text).encode()
    assert parse_object(unseal(sealed)) == tree and parse_object(sealed).keys() == tree.keys() | {"crc32"}
    assert parse_object(unseal(text)) == tree, "without a checksum, as before"
    flipped = [
        sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :]
        for place in range(len(sealed))
        for bit in range(8)
    ]
    cut = [sealed[:place] for place in range(len(sealed))]
    put_in = [sealed[:place] + b"1" + sealed[place:] for place in range(len(sealed) + 1)]
    for damaged in (*flipped, *cut, *put_in):
        try:
            found = parse_object(unseal(damaged))
        except ValueError:
            continue
        known = {key: value for key, value in found.items() if key in tree}
        assert known == tree, f"{damaged!r} was taken for another object"


@pytest.mark.parametrize("instead", ["folder", "pipe", "link to a device", "socket"])
def test_what_stands_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, instead: str) -> None:
    path = tmp_path / "file"
    if instead == "folder":
        path.mkdir()
    elif instead == "pipe":
        os.mkfifo(path)
    elif instead == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    for opened in (open_file, open_to_append):
        with pytest.raises(OSError, match="Is a"):
            opened(path)


def test_a_file_to_append_to_is_made_and_kept(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        with open_to_append(tmp_path / "log") as file:
            file.write(text)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
