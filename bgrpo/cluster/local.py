"""An autoscaling Ray cluster on this machine: started as a process of its own, found again by its state, ended by id.

``ray stop`` is never used: it would end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import bgrpo
from bgrpo.cluster.dashboard_client import Dashboard, DashboardError, Job
from bgrpo.cluster.local_plan import (
    CLUSTER_VARIABLE,
    JOB_STOP_WAIT_S,
    LocalClusterOptions,
    Ports,
    autoscaling_config,
    head_command,
    head_environment,
)
from bgrpo.cluster.local_state import ClusterState, StateFolder
from bgrpo.cluster.private_ray import HOST, private_folder
from bgrpo.errors import UserError

START_S = 180.0
END_S = 30.0
POLL_S = 0.25
LOG_LINES = 20
GRAFANA_S = 20.0
REPOSITORY_DASHBOARDS = Path(bgrpo.__file__).resolve().parents[1] / "cluster" / "grafana" / "dashboards"


class ClusterStartError(Exception):
    """The cluster did not start; the message ends with the last lines of its log."""


def start_cluster(folder: StateFolder, options: LocalClusterOptions) -> ClusterState:
    """Start the head and wait until it takes jobs.

    Args:
        folder: where the state is to be kept.
        options: of the cluster.

    Raises:
        UserError: a local cluster runs already, or the dashboard's port is taken.
        ClusterStartError: the head ended, or did not answer in time; nothing of it is left but its log.
    """
    with folder.starting():
        old = folder.read()
        if old is not None and old.head() is not None:
            raise UserError(
                f"a local cluster runs already, at {old.address} (process {old.pid}): look at it with bgrpo cluster "
                f"status, end it with bgrpo cluster down"
            )
        if old is not None:
            _end(folder, old)
        _check_port(options.dashboard_port)
        state = _launch(folder, options)
        try:
            _wait_until_ready(folder, state)
        except BaseException:
            _end(folder, state)
            raise
        _provide_dashboards(Path(state.folder))
        return state


def end_cluster(folder: StateFolder, state: ClusterState) -> list[int]:
    """End every process of the cluster, and remove its files.

    Returns:
        Ids of processes that are still there, which is never expected.
    """
    with folder.starting():
        return _end(folder, state)


def stop_jobs(dashboard: Dashboard, on_wait: Callable[[list[Job]], None]) -> list[Job]:
    """Ask all unfinished jobs to stop, which lets training runs save a checkpoint, and wait for them.

    Args:
        dashboard: of the cluster.
        on_wait: called with the jobs that are waited for, each time there are fewer, and at first.

    Returns:
        Jobs that have not ended after the time that the cluster gives them.
    """
    waiting = [job for job in dashboard.jobs() if job.unfinished]
    for job in waiting:
        dashboard.stop_job(job.id)
    told, deadline = 0, time.monotonic() + JOB_STOP_WAIT_S + END_S
    while waiting and time.monotonic() < deadline:
        if len(waiting) != told:
            on_wait(waiting)
            told = len(waiting)
        time.sleep(POLL_S)
        waiting = [job for job in dashboard.jobs() if job.unfinished]
    return waiting


def processes_of(state: ClusterState) -> list[psutil.Process]:
    """Every live process of the cluster.

    Ray's processes are in the head's session, and jobs have the cluster's folder in their environment. Processes that
    change their title lose that, but name the folder on their command line: these are found when the head is gone.
    """
    session = state.pid if state.head() is not None else None
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if _lives(process) and _belongs(process, state.folder, session):
                found.append(process)
    return found


def metrics_folder(cluster: Path) -> Path:
    """Where Ray puts what Prometheus and Grafana are started with, in the folder of a cluster."""
    return cluster / "session_latest" / "metrics"


def _belongs(process: psutil.Process, folder: str, session: int | None) -> bool:
    if process.pid == os.getpid():
        return False
    if session is not None and os.getsid(process.pid) == session:
        return True
    words = " ".join(process.cmdline())
    return (folder in words and "/ray/" in words) or process.environ().get(CLUSTER_VARIABLE) == folder


def _launch(folder: StateFolder, options: LocalClusterOptions) -> ClusterState:
    programs = Path(sys.executable).parent
    temporary = Path(tempfile.mkdtemp(prefix="c-", dir=private_folder()))
    ports = Ports(*_free_ports(4))
    config = temporary / "autoscaler.yaml"
    config.write_text(json.dumps(autoscaling_config(options, ports)), "utf-8")  # JSON is YAML
    folder.make_token()
    environment = head_environment(os.environ, programs, ports, temporary, folder.token_path)
    command = head_command(str(programs / "ray"), options, ports, temporary, config)
    with folder.log_path.open("wb") as log:
        head = subprocess.Popen(
            command, env=environment, cwd=temporary, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    created = psutil.Process(head.pid).create_time()
    address = f"http://{HOST}:{options.dashboard_port}"
    state = ClusterState(head.pid, created, address, str(temporary), options.max_nodes)
    folder.write(state)
    return state


def _wait_until_ready(folder: StateFolder, state: ClusterState) -> None:
    dashboard = Dashboard(state.address, folder.token())
    deadline, last = time.monotonic() + START_S, "nothing answered yet"
    while time.monotonic() < deadline:
        if state.head() is None:
            raise ClusterStartError(f"the head ended while it started; {_log_end(folder)}")
        try:
            if any(node.is_head and node.watched for node in dashboard.nodes()):
                return
            last = "the head does not take jobs yet"
        except DashboardError as error:
            last = str(error)
        time.sleep(POLL_S)
    raise ClusterStartError(f"the head was not ready after {START_S:g} s ({last}); {_log_end(folder)}")


def _log_end(folder: StateFolder) -> str:
    lines = folder.log_path.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"the last lines of {folder.log_path}:", *lines])


def _end(folder: StateFolder, state: ClusterState) -> list[int]:
    """The head first, which ends its children in order; then whatever is left; then the files."""
    known = processes_of(state)
    head = state.head()
    if head is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            head.terminate()
    left = [*_wait_for_end(known, END_S), *processes_of(state)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil refuses a process id that was given to another process since
    alive = _wait_for_end(left, END_S)
    if not alive:
        shutil.rmtree(state.folder, ignore_errors=True)
        folder.forget()
    return sorted({process.pid for process in alive})


def _wait_for_end(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that still live after at most ``limit_s``; a process that nobody has reaped yet does not."""
    deadline, alive = time.monotonic() + limit_s, [process for process in processes if _lives(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_S)
        alive = [process for process in alive if _lives(process)]
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _provide_dashboards(cluster: Path) -> None:
    """Put our Grafana dashboards beside Ray's own. Ray writes that folder anew soon after the dashboard answers."""
    target = metrics_folder(cluster) / "grafana" / "dashboards"
    deadline = time.monotonic() + GRAFANA_S
    while not (target / "train_grafana_dashboard.json").is_file():  # the last one that Ray writes
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)
    for path in REPOSITORY_DASHBOARDS.glob("*.json"):
        shutil.copy(path, target / path.name)


def _check_port(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise UserError(
            f"--dashboard-port {port}: is taken ({error.strerror}), perhaps by another Ray; give a free one"
        ) from error


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]
