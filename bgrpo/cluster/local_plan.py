"""What an autoscaling Ray cluster on one machine is started with: its node types, command line and environment.

Ray's "fake multi-node" provider makes nodes that are processes of this machine. Every address is 127.0.0.1 and every
node wants the token. The names of these settings belong to the version of Ray that ``pyproject.toml`` pins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgrpo.cluster.private_ray import HOST, LOOPBACK_ENVIRONMENT

HEAD_NODE_ID = "f" * 51 + "00000"
"""The provider numbers its nodes from this one on."""
HEAD_TYPE = "ray.head.default"
WORKER_TYPE = "worker"
HEAD_RESOURCE = "learner"
WORKER_RESOURCE = "rollout"
CLUSTER_VARIABLE = "BGRPO_LOCAL_CLUSTER"
"""Environment variable that every process of a local cluster inherits; its value is the cluster's folder."""

JOB_STOP_WAIT_S = 120
OBJECT_STORE_BYTES = 300_000_000
AUTOSCALER_INTERVAL_S = 1
PASSED_ON = ("RAY_PROMETHEUS_", "RAY_GRAFANA_")
"""Ray's own variables that the head inherits: where the user's Prometheus and Grafana are. No other RAY_… is."""

_PROVIDER = "bgrpo.cluster.local_nodes.LocalNodeProvider"
_READ_BY_RAY = ("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands")


@dataclass(frozen=True, slots=True)
class LocalClusterOptions:
    """What ``bgrpo cluster local`` was asked for.

    Attributes:
        max_nodes: most nodes at a time, the head included.
        cpus_per_node: what each node says it has; nodes share the machine's cores, whatever they say.
        idle_minutes: a node without work leaves after so long.
        dashboard_port: of the dashboard and job server.
    """

    max_nodes: int
    cpus_per_node: int
    idle_minutes: float
    dashboard_port: int


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the head that must be known before it starts; all others are the system's choice."""

    gcs: int
    client: int
    dashboard_metrics: int
    autoscaler_metrics: int


def autoscaling_config(options: LocalClusterOptions, ports: Ports) -> dict[str, Any]:
    """The autoscaler's configuration: a head, and workers from none to ``max_nodes - 1``."""
    workers = options.max_nodes - 1
    return {
        "cluster_name": "bgrpo-local",
        "max_workers": workers,
        "upscaling_speed": workers,
        "idle_timeout_minutes": options.idle_minutes,
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": f"{HOST}:{ports.gcs}",
            "head_node_id": HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        **{name: [] for name in _READ_BY_RAY},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {
                "resources": {"CPU": options.cpus_per_node, HEAD_RESOURCE: 1},
                "node_config": {},
                "max_workers": 0,
            },
            WORKER_TYPE: {
                "resources": {
                    "CPU": options.cpus_per_node,
                    WORKER_RESOURCE: 1,
                    "object_store_memory": OBJECT_STORE_BYTES,
                },
                "node_config": {},
                "min_workers": 0,
                "max_workers": workers,
            },
        },
    }


def head_command(ray: str, options: LocalClusterOptions, ports: Ports, folder: Path, config: Path) -> list[str]:
    """``ray start`` of the head; it ends with its process, and with it the cluster.

    Args:
        ray: the ``ray`` program.
        options: of the cluster.
        ports: of the head.
        folder: of Ray's logs and sockets; a short path, sockets allow 107 characters.
        config: file with :func:`autoscaling_config`.
    """
    return [
        ray,
        "start",
        "--head",
        "--block",
        f"--node-ip-address={HOST}",
        f"--port={ports.gcs}",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={options.dashboard_port}",
        f"--num-cpus={options.cpus_per_node}",
        f'--resources={{"{HEAD_RESOURCE}": 1}}',
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}",
        f"--autoscaling-config={config}",
        "--disable-usage-stats",
    ]


def head_environment(
    environment: Mapping[str, str], programs: Path, ports: Ports, folder: Path, token: Path
) -> dict[str, str]:
    """Environment of the head, which nodes and jobs inherit.

    Args:
        environment: of the caller; its Ray settings are left out, see :data:`PASSED_ON`.
        programs: folder of the ``python`` that jobs run with; comes first on the ``PATH``.
        ports: of the head.
        folder: of the cluster.
        token: file with the token.
    """
    kept = {
        name: value for name, value in environment.items() if not name.startswith("RAY_") or name.startswith(PASSED_ON)
    }
    return kept | {
        **LOOPBACK_ENVIRONMENT,
        "PATH": os.pathsep.join(filter(None, [str(programs), environment.get("PATH", "")])),
        CLUSTER_VARIABLE: str(folder),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": str(AUTOSCALER_INTERVAL_S),
    }
