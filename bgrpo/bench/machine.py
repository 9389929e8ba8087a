"""The machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT

_PACKAGES = ("torch", "transformers", "ctranslate2", "openvino-genai")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")


def describe_machine() -> dict[str, Any]:
    """What a reader needs to compare figures: processor, memory, versions, and this process's threads and allocator.

    Returns:
        Plain values for JSON. ``malloc`` holds the allocator settings that this process was started with, ``load`` the
        1-minute load average, which is near 0 on a machine that does nothing else before the measurement.
    """
    import torch

    path = Path("/proc/cpuinfo")
    info = [line.partition(":") for line in path.read_text().splitlines()] if path.exists() else []
    models = [value.strip() for name, _, value in info if name.strip() == "model name"]
    flags = {flag for name, _, value in info if name.strip() in ("flags", "Features") for flag in value.split()}
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _installed(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ.get(name) for name in ALLOCATOR_ENVIRONMENT},
        "load": os.getloadavg()[0],
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
