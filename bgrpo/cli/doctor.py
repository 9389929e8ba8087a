"""Is this machine fit to run bgrpo? Each check says what it found and, unless all is well, what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.text import Text

from bgrpo.config import load_config
from bgrpo.display.terminal import PlainConsole
from bgrpo.errors import UserError
from bgrpo.tasks.base import generate_problems, load_task

GIB = 1024**3
CHECKED_PACKAGES = ("torch", "transformers", "trl", "ray", "mlflow")
KNOWN_PROBLEMS = 5  # that the shipped policy is asked to solve
RAY_LIMIT_S = 90.0
FASTER = 0.9  # of fp32's time: what bf16 must stay below to be worth its rounding

_RAY_SCRIPT = """
import ray
from bgrpo.cluster.private_ray import private_ray
with private_ray(num_cpus=1):
    assert ray.get(ray.remote(lambda: 41 + 1).remote(), timeout=60) == 42
"""
_RAY_LOGS = "look into /tmp/bgrpo-*/ray/session_latest/logs"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ``fail`` means that training cannot work, ``warn`` that it may be slow or stop.
        detail: what was found.
        advice: what to do about it; empty when all is well or the detail says it.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def diagnose(runs: Path, with_ray: bool = True) -> Iterator[Check]:
    """Look at this machine, one finding at a time.

    Args:
        runs: folder where runs are to live.
        with_ray: also start a private Ray and end it again (10 to 20 seconds).
    """
    yield check_python()
    for package in CHECKED_PACKAGES:
        yield check_package(package)
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_runs_folder(runs)
    probes: list[tuple[str, Callable[[], Check]]] = [
        ("accelerator", check_accelerator),
        ("precisions", check_precisions),
        ("decode kernel", check_kernel),
        ("policy", check_policy),
        ("MLflow", partial(check_mlflow, runs)),
    ]
    if with_ray:
        probes.append(("Ray starts", check_ray))
    for name, probe in probes:
        yield _guarded(name, probe)


def check_python() -> Check:
    """The interpreter against the package's own bounds."""
    version = platform.python_version()
    wanted = _metadata("Requires-Python")
    if wanted is None:
        return Check(
            "python", "warn", f"{version}; bgrpo itself is not installed", "pip install -e . in the repository"
        )
    if not SpecifierSet(wanted).contains(version):
        return Check(
            "python", "fail", f"{version}, but {wanted} is needed", f"make a virtual environment with {wanted}"
        )
    return Check("python", "ok", version)


def check_package(package: str) -> Check:
    """One dependency against the bounds that bgrpo's metadata gives."""
    requirement = _requirements().get(package)
    wanted = str(requirement.specifier) if requirement is not None else ""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, "fail", "not installed", f"pip install '{requirement or package}'")
    if requirement is not None and not requirement.specifier.contains(version, prereleases=True):
        return Check(package, "fail", f"{version}, but {wanted} is needed", f"pip install '{requirement}'")
    return Check(package, "ok", version)


def check_cores() -> Check:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Check("cores", "warn", f"{cores}", "rollouts and learner share one core: expect half the speed")
    return Check("cores", "ok", f"{cores}")


def check_memory() -> Check:
    """Memory that is free now, within the container's limit."""
    free = _free_memory_bytes()
    detail = f"{free / GIB:.1f} GiB free"
    if free < 2 * GIB:
        return Check(
            "memory", "fail", detail, "at least 2 GiB are needed; close other programs or take a larger machine"
        )
    if free < 4 * GIB:
        return Check("memory", "warn", detail, "4 GiB are comfortable; use one rollout actor and one learner")
    return Check("memory", "ok", detail)


def check_shared_memory() -> Check:
    """Ray keeps its objects in /dev/shm, and falls back to the disk where that is small."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("/dev/shm", "warn", "absent", "Ray's object store goes to the disk and is slow")
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free"
    if free < GIB:
        return Check("/dev/shm", "warn", detail, "start the container with --shm-size=2g or more")
    return Check("/dev/shm", "ok", detail)


def check_runs_folder(runs: Path) -> Check:
    """The folder of all runs can be written and has room."""
    name, folder = "run folder", _nearest_folder(runs)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return Check(name, "fail", f"{runs}: {error.strerror}", "set run.dir to a folder that can be written")
    free = shutil.disk_usage(folder).free
    detail = f"{os.path.realpath(runs)}: writable, {free / GIB:.1f} GiB free"
    if free < GIB:
        return Check(name, "fail", detail, "free some space, or set run.dir to a larger disk")
    if free < 5 * GIB:
        return Check(name, "warn", detail, "5 GiB are comfortable for checkpoints and artifacts")
    return Check(name, "ok", detail)


def check_accelerator() -> Check:
    """GPUs that torch sees; none is fine."""
    import torch

    if not torch.cuda.is_available():
        return Check("accelerator", "ok", "none: everything runs on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("accelerator", "ok", ", ".join(names))


def check_precisions() -> Check:
    """Which of ``rollout.dtype`` and ``learner.dtype`` are fast on this processor; bf16 works on every one."""
    import torch

    from bgrpo.decoding.onednn import onednn_multiplies

    name, advice = "precisions", "use rollout.dtype=fp32; learner.dtype=bf16 saves memory, not time"
    if not onednn_multiplies(torch.bfloat16):
        return Check(name, "ok", "bf16 computes in fp32 arithmetic here: same rounding, no faster", advice)
    share = _bf16_share()
    if share > FASTER:
        return Check(
            name, "ok", f"bf16 is no faster than fp32 here: its products take {share:.1f} times as long", advice
        )
    return Check(name, "ok", f"fp32 and bf16 are fast: products in bf16 take {share:.0%} of fp32's time")


def check_kernel() -> Check:
    """The compiled attention kernel; decoding does without it, slower."""
    from bgrpo.decoding.compiled import KernelUnavailable, load_kernel

    try:
        load_kernel()
    except KernelUnavailable as error:
        return Check(
            "decode kernel", "warn", str(error), "install g++ 12 or newer: decoding on the CPU is faster with it"
        )
    return Check("decode kernel", "ok", "compiled for this processor")


def check_policy() -> Check:
    """The shipped policy loads, decodes, and solves at least one problem of its kind, exactly checked."""
    from bgrpo.config import TrainConfig, load_config
    from bgrpo.evaluation.decoders import LocalDecoder
    from bgrpo.evaluation.metrics import RANK_WIDTH, evaluate
    from bgrpo.policies.io import load_policy
    from bgrpo.scoring.attempts import trial_of
    from bgrpo.scoring.judge import Judge

    policy = load_policy("shipped")
    config = load_config(TrainConfig, "quickstart")
    test = config.task.test
    task = load_task(config.task.name, config.task.options)
    problems = generate_problems(task, test.options, KNOWN_PROBLEMS, test.seed)
    with Judge(config).start(trial_of(problems)) as checks:
        metrics = evaluate(LocalDecoder(policy, checks.judge, 32), problems, [RANK_WIDTH], samples=0, seed=0).metrics()
    solved = round(metrics[f"beam@{RANK_WIDTH}"] * KNOWN_PROBLEMS)
    detail = f"shipped policy solves {solved} of {KNOWN_PROBLEMS} problems"
    if not solved:
        return Check("policy", "fail", detail, "its weights are damaged: install the package again")
    return Check("policy", "ok", detail)


def check_mlflow(runs: Path) -> Check:
    """The embedded MLflow store can be made and written in the folder of all runs."""
    from bgrpo.config import TrackingSection
    from bgrpo.runs.mlflow_tracking import Tracker

    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_nearest_folder(runs)) as folder:
        tracker = Tracker.start(load_config(TrackingSection, None), folder, "doctor", {"check": "write"})
        tracker.log(0, {"check": 1.0})
        tracker.finish("FINISHED")
    store = runs / "mlflow.db"
    if store.exists() and not os.access(store, os.W_OK):
        return Check("MLflow", "fail", f"{store} cannot be written", "mend its permissions, or set tracking.uri")
    if tracker.run_id is None:
        return Check(
            "MLflow", "fail", "its store cannot be made", "see the warning above, or set tracking.enabled=false"
        )
    return Check("MLflow", "ok", "store can be written")


def check_ray(limit_s: float = RAY_LIMIT_S, script: str = _RAY_SCRIPT) -> Check:
    """A private Ray starts, runs a task and ends, in a process of its own that is killed at the limit."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Check("Ray starts", "fail", f"no answer in {limit_s:g} s", _RAY_LOGS)
    if process.returncode:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"status {process.returncode}")
        return Check("Ray starts", "fail", last.strip()[:200], _RAY_LOGS)
    return Check("Ray starts", "ok", f"in {time.monotonic() - started:.0f} s")


def _bf16_share() -> float:
    """Processor time of a matrix product in bf16 as a share of fp32's, each the least of a few, as decoding runs it."""
    import torch

    from bgrpo.decoding.fast_layers import Precision, matrix_product

    def seconds(precision: Precision) -> float:
        multiply, rows = matrix_product(torch.ones(512, 512), None, precision, then_gelu=False), torch.ones(256, 512)
        best = float("inf")
        for _ in range(6):
            started = time.process_time()
            multiply(rows)
            best = min(best, time.process_time() - started)
        return best

    with torch.inference_mode():
        return seconds("bf16") / seconds("fp32")


def _guarded(name: str, probe: Callable[[], Check]) -> Check:
    """A finding even where a part cannot be imported or used at all."""
    try:
        return probe()
    except UserError as error:
        return Check(name, "fail", str(error))
    except (ImportError, OSError) as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}", "install bgrpo again in a fresh environment")


def _nearest_folder(path: Path) -> Path:
    """``path``, or the closest folder above it that exists already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _metadata(field: str) -> str | None:
    try:
        return importlib.metadata.metadata("bgrpo")[field]
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None


def _requirements() -> dict[str, Requirement]:
    try:
        lines = importlib.metadata.requires("bgrpo") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in requirements if not requirement.marker}


def _free_memory_bytes() -> int:
    """The smaller of what the kernel has free and what the control group (version 2) still allows."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - used)


STATUS_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine_machine(runs: Path, with_ray: bool, as_json: bool) -> int:
    """Print each finding of the doctor as it comes; 1 when training cannot work."""
    console = PlainConsole(stderr=as_json)
    checks = []
    with console.status("looking"):
        for check in diagnose(runs, with_ray):
            checks.append(check)
            style = STATUS_STYLES[check.status]
            advice = f"\n     → {check.advice}" if check.advice else ""
            console.print(Text(f"{check.status:4} ", style=style), end="")
            console.print(f"{check.name}: {check.detail}{advice}", soft_wrap=True)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    return 1 if failed else 0
