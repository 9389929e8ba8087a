"""What ``bgrpo cluster local``, ``status`` and ``down`` do. Each returns the exit status."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bgrpo.cluster.dashboard_client import Dashboard, DashboardError, Job, Node
from bgrpo.cluster.local import (
    ClusterStartError,
    end_cluster,
    metrics_folder,
    processes_of,
    start_cluster,
    stop_jobs,
)
from bgrpo.cluster.local_plan import LocalClusterOptions
from bgrpo.cluster.local_state import ClusterState, StateFolder
from bgrpo.display.terminal import PlainConsole, table_console

HIDDEN_RESOURCES = ("memory", "object_store_memory")


def start_local_cluster(options: LocalClusterOptions) -> int:
    """Start the cluster, and print what to type next; 1 when it does not start."""
    folder = StateFolder()
    try:
        with PlainConsole(stderr=True).status("starting Ray"):
            state = start_cluster(folder, options)
    except ClusterStartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = PlainConsole()
    for line in _next_steps(folder, state):
        console.print(line, soft_wrap=True)
    return 0


def show_local_cluster(as_json: bool) -> int:
    """Print nodes and jobs; 1 when no local cluster runs, or it does not answer."""
    folder = StateFolder()
    state = folder.read()
    if state is None or state.head() is None:
        return _tell_absence(folder, state, as_json)
    dashboard = Dashboard(state.address, folder.token())
    try:
        nodes, jobs = dashboard.nodes(), dashboard.jobs()
    except DashboardError as error:
        print(f"error: process {state.pid} lives, but its dashboard fails: {error}", file=sys.stderr)
        return 1
    if as_json:
        tree = {"running": True, "address": state.address, "pid": state.pid, "folder": state.folder}
        tree |= {"max_nodes": state.max_nodes, "token_path": str(folder.token_path)}
        print(json.dumps(tree | {"nodes": [asdict(node) for node in nodes], "jobs": [asdict(job) for job in jobs]}))
        return 0
    console = table_console()
    console.print(f"{state.address}, {len(nodes)} of at most {state.max_nodes} nodes", soft_wrap=True)
    console.print(_node_table(nodes))
    if jobs:
        console.print(_job_table(jobs))
    return 0


def end_local_cluster(now: bool) -> int:
    """End the cluster, jobs first; 1 when something of it is left.

    Args:
        now: do not wait for jobs to save what they have.
    """
    folder = StateFolder()
    state = folder.read()
    if state is None:
        print("no local cluster runs")
        return 0
    if not now and state.head() is not None:
        _stop_jobs(Dashboard(state.address, folder.token()))
    left = end_cluster(folder, state)
    if left:
        print(f"error: these processes do not end: {', '.join(map(str, left))}", file=sys.stderr)
        return 1
    print(f"ended the local cluster at {state.address}")
    return 0


def _stop_jobs(dashboard: Dashboard) -> None:
    def tell(jobs: list[Job]) -> None:
        print(f"waiting for jobs to stop: {', '.join(job.id for job in jobs)}", file=sys.stderr, flush=True)

    try:
        late = stop_jobs(dashboard, tell)
    except DashboardError as error:
        print(f"note: jobs cannot be stopped in order ({error}); they end with the cluster", file=sys.stderr)
    else:
        for job in late:
            print(f"note: job {job.id} does not stop; it ends with the cluster", file=sys.stderr)


def _tell_absence(folder: StateFolder, state: ClusterState | None, as_json: bool) -> int:
    left = [] if state is None else [process.pid for process in processes_of(state)]
    if as_json:
        print(json.dumps({"running": False, "leftover_processes": left}))
    elif state is None:
        print("no local cluster runs; start one: bgrpo cluster local")
    else:
        print(
            f"the cluster at {state.address} has died, {folder.log_path} may say why; {len(left)} of its processes are "
            f"left; remove what is left: bgrpo cluster down"
        )
    return 1


def _next_steps(folder: StateFolder, state: ClusterState) -> list[str]:
    grafana = metrics_folder(Path(state.folder)) / "grafana" / "grafana.ini"
    prometheus = metrics_folder(Path(state.folder)) / "prometheus" / "prometheus.yml"
    return [
        f"A cluster of 1 to {state.max_nodes} nodes: {state.address}",
        f"  its token, which the page asks for: {folder.token_path}",
        "train on it:",
        f"  bgrpo train --config quickstart --submit {state.address}",
        "look at it, end it:",
        "  bgrpo cluster status",
        "  bgrpo cluster down",
        "for ray job list, logs and stop:",
        f"  export RAY_API_SERVER_ADDRESS={state.address} RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder.token_path}",
        "metrics, where Prometheus and Grafana are installed:",
        f"  prometheus --config.file={prometheus} --storage.tsdb.path={folder.path / 'prometheus'} "
        "--web.listen-address=127.0.0.1:9090",
        f"  GF_SERVER_HTTP_ADDR=127.0.0.1 grafana server --homepath /usr/share/grafana --config {grafana}",
    ]


def _node_table(nodes: list[Node]) -> Table:
    table = Table("node", "kind", "in use")
    for node in nodes:
        used = [line for line in node.usage if line.rpartition(" ")[2] not in HIDDEN_RESOURCES]
        table.add_row(node.id[-5:], "head" if node.is_head else "worker", ", ".join(used))
    return table


def _job_table(jobs: list[Job]) -> Table:
    table = Table("job", "status", "command")
    for job in jobs:
        table.add_row(job.id, job.status, job.command, style="" if job.unfinished else "dim")
    return table
