"""Times of a local cluster on this machine: until it takes jobs, until a node joins, until an idle node has left.

``PYTHONPATH=. python tests/cluster/local_cluster_times.py``; prints one line of JSON. The runbook has its figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from local_cluster import URL, RunbookShell, wait_for

IDLE_MINUTES = 0.1
REPETITIONS = 3


def nodes(shell: RunbookShell) -> int:
    """How many there are."""
    return len(shell.status()["nodes"])


def grow_and_shrink(shell: RunbookShell, job: str) -> dict[str, float]:
    """Submit a job that needs a worker, wait for it to join, stop the job, wait for it to leave."""
    command = ["ray", "job", "submit", "--address", shell.address, "--submission-id", job, "--no-wait"]
    wanted = ["--entrypoint-resources", '{"rollout": 0.5}', "--", "sleep", "600"]
    started = time.monotonic()
    subprocess.run([*command, *wanted], env=shell.environment, check=True, capture_output=True, timeout=240)
    accepted = time.monotonic() - started
    joined = accepted + wait_for(lambda: nodes(shell) == 2, 200, "a node to join")
    shell.run(f"ray job stop --address {URL} JOB", JOB=job, limit_s=240)
    return {
        "accepted_s": accepted,
        "joined_s": joined,
        "left_s": wait_for(lambda: nodes(shell) == 1, 200, "the idle node to leave"),
    }


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as home:
        shell = RunbookShell.make(Path(home), {})
        limits = (f"--idle-minutes={IDLE_MINUTES}", f"--dashboard-port={shell.port}")
        started = time.monotonic()
        shell.run("bgrpo cluster local --max-nodes 3", *limits, limit_s=300, **{"nodes 3": "nodes 2"})
        figures: dict[str, object] = {"ready_s": time.monotonic() - started}
        try:
            shell.export("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.bgrpo/cluster/token")
            figures["turns"] = [grow_and_shrink(shell, f"turn-{turn}") for turn in range(REPETITIONS)]
        finally:
            ending = time.monotonic()
            shell.run("bgrpo cluster down", limit_s=300)
            figures["down_s"] = time.monotonic() - ending
    print(json.dumps(figures | {"idle_minutes": IDLE_MINUTES, "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
