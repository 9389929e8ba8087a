"""A private Ray: nothing listens for other machines, and nothing lies open for other users."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from open_sockets import listeners
from other_user import ON_FILES, ON_FOLDERS, what_another_user_can_do

from bgrpo.cluster import private_ray
from bgrpo.errors import UserError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(private_ray, "SOCKETS_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("before", ["nothing", "open to all", "a link", "a file"])
def test_the_folder_is_ours_alone_whatever_was_there(root: Path, before: str) -> None:
    path = root / f"bgrpo-{os.getuid()}"
    if before == "open to all":
        path.mkdir()
        path.chmod(0o777)
    elif before == "a link":
        (root / "of another").mkdir(mode=0o777)
        path.symlink_to(root / "of another")
    elif before == "a file":
        path.touch()
    found = private_ray.private_folder()
    assert found.is_dir() and not found.is_symlink() and mode(found) == 0o700
    assert (found == path) == (before in ("nothing", "open to all"))


def test_a_folder_of_somebody_else_is_not_used(root: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    path = root / "bgrpo-0"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    found = private_ray.private_folder()
    assert found != path and mode(found) == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_token_is_readable_for_its_owner_only(tmp_path: Path, umask: int) -> None:
    path, before = tmp_path / "home" / "token", os.umask(umask)
    try:
        token = private_ray.write_token(path)
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert len(token) == 64 and path.read_text() == token
    assert private_ray.write_token(path) == token, "whoever comes second takes the first one's"
    assert list(path.parent.iterdir()) == [path]


def test_rays_own_token_is_made_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    private_ray.secure_token()
    made = path.read_text()
    assert mode(path) == 0o600
    path.chmod(0o644)  # as Ray writes it
    private_ray.secure_token()
    assert mode(path) == 0o600 and path.read_text() == made
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(UserError, match=r"\.ray/auth_token: Ray's token cannot be kept there"):
        private_ray.secure_token()


def test_logs_of_old_sessions_are_removed_and_no_others(tmp_path: Path) -> None:
    now, names = time.time(), {
        "session_2026-01-01_00-00-00_1_999999999": False,  # old, and nobody's
        f"session_2026-01-01_00-00-00_1_{os.getpid()}": True,  # its process lives
        "session_2026-01-02_00-00-00_1_999999998": True,  # of today
        "something": True,
    }  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
        if "-02_" not in name:
            os.utime(tmp_path / name, (now, now - 2 * private_ray.SESSIONS_KEPT_S))
    private_ray._forget_old_sessions(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_what_rays_raylet_says_is_no_output_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """On standard output it would stand among the lines of ``--json``."""
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    private_ray.log_what_ray_says()
    worker.print_to_stdstream(
        {"lines": ["A worker died\nwhile"], "pid": "raylet", "is_err": False}, ignore_prefix=False
    )
    assert capsys.readouterr().out == "" and "Ray: A worker died while" in caplog.text


def test_another_user_can_do_all_to_what_lies_open() -> None:
    """Else the test of what he cannot would say nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        open_to_all = Path(made)
        open_to_all.chmod(0o777)
        folder, file = open_to_all / "folder", open_to_all / "file"
        folder.mkdir()
        folder.chmod(0o777)
        file.touch()
        file.chmod(0o666)
        for path, attempts in ((folder, ON_FOLDERS[:3]), (file, ON_FILES[:2])):
            assert what_another_user_can_do(path)[: len(attempts)] == list(attempts)
            moved = path.with_name(f"{path.name}.moved")
            assert moved.exists() and "delete" in what_another_user_can_do(moved.rename(path.with_name("again")))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_nothing_listens_for_other_machines() -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def pid(self) -> int:
            return os.getpid()

    worker = Worker.remote()  # type: ignore[attr-defined]
    pid = ray.get(worker.pid.remote(), timeout=240)
    this = psutil.Process()
    found = listeners([this, *this.children(recursive=True)])
    assert {"gcs_server", "raylet"} <= {Path(listener.process.split()[0]).name for listener in found}
    assert listeners([psutil.Process(pid)]), "a worker's socket is among them"
    assert [listener for listener in found if not listener.is_loopback] == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_another_user_reaches_none_of_its_files() -> None:
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]
    folder = private_ray.private_folder()
    assert folder in session.parents
    paths = [
        folder,
        folder / "ray",
        session,
        session / "sockets",
        session / "logs",
        Path.home() / ".ray" / "auth_token",
    ]
    paths += [path for path in session.rglob("*") if path.suffix in (".log", ".out", ".err")][:3]
    paths += list((session / "sockets").iterdir())
    assert {str(path): what_another_user_can_do(path) for path in paths} == {str(path): [] for path in paths}
