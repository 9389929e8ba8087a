"""Nodes that leave, gracefully or not, and nodes that join: the pool goes on, waits, and fills up again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("arguments", "nodes"), [(["quick"], 3), pytest.param([], 4, marks=pytest.mark.long)], ids=["one", "all"]
)
def test_a_pool_outlives_its_nodes(tmp_path: Path, arguments: list[str], nodes: int) -> None:
    """Not one death may count: the pool in there would give up, and refuse its request, after the first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "RAY_USAGE_STATS_ENABLED": "0"}
    program = Path(__file__).with_name("node_losses.py")
    command = [sys.executable, program, tmp_path / "report.json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=350)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failure"] is None
    assert report["every request answered once"] and report["requests"] >= 6 * nodes
    assert report["nodes that answered"] >= nodes, "actors of the first two nodes, and of each that came later"
    assert report["streaks"] == [0, 0]
    assert report["first"] is not None
