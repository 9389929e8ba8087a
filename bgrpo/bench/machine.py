"""The machine that a measurement was made on, and the environment that every measuring process gets."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_PACKAGES = ("torch", "transformers", "ctranslate2")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")


def measuring_environment(threads: int) -> dict[str, str]:
    """Environment of a process that measures: this one's, with the allocator tuned and the threads set.

    The C library and OpenMP read these before the first line of Python, so that they need a process of their own.
    """
    return {
        **os.environ,
        **ALLOCATOR_ENVIRONMENT,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def describe_machine() -> dict[str, Any]:
    """What a reader needs to compare figures: processor, memory, versions, and this process's threads and allocator.

    Returns:
        Plain values for JSON. ``malloc`` holds the allocator settings that this process was started with, ``load`` the
        1-minute load average, which is near 0 on a machine that does nothing else before the measurement.
    """
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "instruction_sets": _instruction_sets(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _installed(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ.get(name) for name in ALLOCATOR_ENVIRONMENT},
        "load": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    """The vector and matrix instructions that matter here, of those the processor says it has."""
    flags = {flag for line in _cpu_info() if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
