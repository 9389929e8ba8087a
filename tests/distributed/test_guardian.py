"""What a driver's private Ray leaves behind ends with the driver, and the loss of that Ray ends the driver in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from bgrpo.chaos.faults import wait_until
from bgrpo.distributed.session.guardian import TRAIN_FOLDER, remove_train_folders

DRIVER = """
import os, subprocess, sys, tempfile, time
from bgrpo.distributed.session.guardian import TRAIN_FOLDER, guardian
with guardian():
    orphan = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 100 & wait"], start_new_session=True)
    folder = tempfile.mkdtemp(prefix=f"{TRAIN_FOLDER}{os.getpid()}-")
    print(orphan.pid, folder, flush=True)
    if sys.argv[1] == "waits": time.sleep(100)
print("over", flush=True)
"""


@pytest.mark.parametrize("end", ["waits", "ends"])
def test_processes_and_folders_of_a_driver_end_with_it(end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, end], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        orphan, folder = driver.stdout.readline().split()
        try:
            left = [int(orphan), *(child.pid for child in psutil.Process(int(orphan)).children())]
        except psutil.NoSuchProcess:
            left = [int(orphan)]
        driver.kill() if end == "waits" else driver.wait(60)
    wait_until(lambda: not Path(folder).exists(), "the removal of the folder", 200)
    wait_until(lambda: not any(_lives(pid) for pid in left), "the end of what was left", 200)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_only_folders_of_drivers_that_have_ended_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    names = {f"{TRAIN_FOLDER}{ended.pid}-a", f"{TRAIN_FOLDER}{os.getpid()}-b", f"{TRAIN_FOLDER}foreign", "other"}
    for name in names:
        (tmp_path / name).mkdir()
    remove_train_folders()
    assert {path.name for path in tmp_path.iterdir()} == names - {f"{TRAIN_FOLDER}{ended.pid}-a"}


WATCHED = """
import os, subprocess, sys, time
from bgrpo.distributed.session.head_watch import own_ray_watch
from bgrpo.runs.stopping import last_words
own = [subprocess.Popen([path, "100"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for path in sys.argv[1:]]
with last_words(lambda status, cause: print(status, flush=True)), own_ray_watch():
    print(*(process.pid for process in own), flush=True)
    if sys.stdin.readline(): sys.exit(0)
    time.sleep(100)
"""


@pytest.mark.parametrize("lost", ["raylet", "gcs_server", None])
def test_the_loss_of_a_raylet_or_gcs_of_ones_own_is_one_line(tmp_path: Path, lost: str | None) -> None:
    names = ["raylet", "gcs_server"]
    for name in names:
        shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / name)
    command = [sys.executable, "-c", WATCHED, *(str(tmp_path / name) for name in names)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as driver:  # type: ignore[call-overload]
        pids = dict(zip(names, map(int, driver.stdout.readline().split()), strict=True))
        if lost is not None:
            psutil.Process(pids[lost]).kill()
            said, errors = driver.stdout.read(), driver.stderr.read()
        else:
            said, errors = driver.communicate("end\n", timeout=240)
        driver.wait(60)
    for pid in pids.values():
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
    if lost is None:
        assert (driver.returncode, said, errors) == (0, "", "")
    else:
        assert driver.returncode == 1 and said == "failed\n"
        assert errors.startswith(f"error: Ray's {lost} on this machine (process {pids[lost]}) has ended")
        assert errors.count("\n") == 1
