"""The doctor finds what is wrong with a machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from bgrpo.cli import doctor
from bgrpo.decoding import onednn
from bgrpo.errors import UserError
from bgrpo.policies.io import SHIPPED_POLICY
from bgrpo.runs.mlflow_tracking import Tracker

Usage = namedtuple("Usage", ["total", "used", "free"])
METADATA = {"Requires-Python": ">=3.11,<3.13"}
REQUIRES = ["torch>=2.13,<2.14", "ray[train,tune]>=2.60,<2.61", "pytest>=9; extra == 'dev'"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions of packages as the doctor sees them."""
    versions = {"torch": "2.13.0+cpu", "ray": "2.60.0"}

    def version(package: str) -> str:
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda package: METADATA)
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: REQUIRES)
    return versions


def test_versions_within_the_bounds_are_fine(installed: dict[str, str]) -> None:
    assert doctor.check_python().status == "ok"
    assert doctor.check_package("torch") == doctor.Check("torch", "ok", "2.13.0+cpu")
    assert doctor.check_package("ray").status == "ok"


def test_versions_outside_the_bounds_are_named_with_the_command_that_mends_them(installed: dict[str, str]) -> None:
    installed["torch"] = "2.11.0"
    check = doctor.check_package("torch")
    assert check.status == "fail"
    assert "2.11.0" in check.detail
    assert "<2.14,>=2.13" in check.detail
    assert check.advice == "pip install 'torch<2.14,>=2.13'"


def test_a_missing_package_is_named(installed: dict[str, str]) -> None:
    del installed["ray"]
    check = doctor.check_package("ray")
    assert (check.status, check.detail) == ("fail", "not installed")
    assert "ray[train,tune]" in check.advice


def test_another_python_is_refused(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.13.1")
    assert doctor.check_python().status == "fail"


@pytest.mark.parametrize(("free_gib", "status"), [(0.5, "fail"), (3, "warn"), (50, "ok")])
def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free_gib * doctor.GIB))
    assert doctor.check_runs_folder(tmp_path / "runs" / "deep").status == status
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_folder_that_cannot_be_written() -> None:
    check = doctor.check_runs_folder(Path("/proc/runs"))
    assert check.status == "fail"
    assert "run.dir" in check.advice


@pytest.mark.parametrize(("free_gib", "status"), [(1, "fail"), (3, "warn"), (8, "ok")])
def test_little_memory(monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str) -> None:
    monkeypatch.setattr(doctor, "_free_memory_bytes", lambda: free_gib * doctor.GIB)
    assert doctor.check_memory().status == status


def test_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert doctor.check_cores().status == "warn"


def test_free_memory_is_in_bytes_and_no_more_than_there_is() -> None:
    assert 2**26 < doctor._free_memory_bytes() <= psutil.virtual_memory().total


def test_a_ray_that_hangs_is_ended_at_the_limit(tmp_path: Path) -> None:
    script = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    check = doctor.check_ray(limit_s=5.0, script=script)
    assert check.status == "fail"
    assert "no answer in 5 s" in check.detail
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_ray_that_fails_shows_its_last_line() -> None:
    check = doctor.check_ray(script="raise RuntimeError('the raylet did not start')")
    assert check.status == "fail"
    assert check.detail == "RuntimeError: the raylet did not start"


def test_a_damaged_installation_is_a_finding_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_policy() -> Any:
        raise UserError("policy shipped: model.safetensors is missing")

    def no_torch() -> Any:
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "check_policy", no_policy)
    monkeypatch.setattr(doctor, "check_accelerator", no_torch)
    monkeypatch.setattr(doctor, "check_mlflow", lambda runs: doctor.Check("MLflow", "ok", ""))
    checks = {check.name: check for check in doctor.diagnose(tmp_path, with_ray=False)}
    assert checks["policy"].status == "fail"
    assert "model.safetensors" in checks["policy"].detail
    assert checks["accelerator"].status == "fail"
    assert "libtorch" in checks["accelerator"].detail
    assert "Ray starts" not in checks


def test_a_policy_that_solves_nothing_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgrpo.policies import io, source
    from bgrpo.policies.model import build_policy
    from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(0, 0)
    untrained = build_policy(tokenizer, layers=1, heads=2, width=8, context=128, seed=0)
    io.save_policy(untrained, tokenizer, tmp_path / "policy")
    monkeypatch.setattr(source, "SHIPPED_POLICY", tmp_path / "policy")
    check = doctor.check_policy()
    assert (check.status, check.detail) == ("fail", "shipped policy solves 0 of 5 problems")


@pytest.mark.skipif(not SHIPPED_POLICY.is_dir(), reason=f"{SHIPPED_POLICY} is not there yet")
def test_the_shipped_policy_is_in_order() -> None:
    check = doctor.check_policy()
    assert check.status == "ok", check


def test_an_mlflow_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(Tracker, "start", lambda *args: Tracker(None, "a run", time.monotonic))
    assert doctor.check_mlflow(tmp_path).status == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "mlflow.db")
    assert doctor.check_mlflow(tmp_path).status == "fail"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    monkeypatch.setattr(Tracker, "start", lambda *args: Tracker(None, None, time.monotonic))
    assert doctor.check_mlflow(tmp_path / "new").detail == "its store cannot be made"


def test_a_missing_compiler_is_a_warning_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    check = doctor.check_kernel()
    assert check.status == "warn"
    assert "no-such-compiler failed" in check.detail


ADVICE = "use rollout.dtype=fp32; learner.dtype=bf16 saves memory, not time"


@pytest.mark.parametrize(
    ("multiplies", "share", "detail", "advice"),
    [
        (True, 0.52, "fp32 and bf16 are fast: products in bf16 take 52% of fp32's time", ""),
        (True, 2.9, "bf16 is no faster than fp32 here: its products take 2.9 times as long", ADVICE),
        (False, 1.0, "bf16 computes in fp32 arithmetic here: same rounding, no faster", ADVICE),
    ],
)
def test_precisions_that_are_fast_are_named(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, share: float, detail: str, advice: str
) -> None:
    monkeypatch.setattr(onednn, "onednn_multiplies", lambda dtype: multiplies)
    monkeypatch.setattr(doctor, "_bf16_share", lambda: share)
    assert doctor.check_precisions() == doctor.Check("precisions", "ok", detail, advice)


def test_precisions_of_this_processor_are_among_the_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_policy", "check_mlflow", "check_kernel"):
        monkeypatch.setattr(doctor, name, lambda *_: doctor.Check("left out", "ok", ""))
    checks = {check.name: check for check in doctor.diagnose(tmp_path, with_ray=False)}
    assert checks["precisions"].status == "ok" and "bf16" in checks["precisions"].detail
