"""What the local cluster's head is started with, held against what Ray itself makes of it. Nothing is started."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private import ray_constants
from ray.autoscaler.v2.instance_manager.config import FileConfigReader

from bgrpo.cluster.local_plan import (
    CLUSTER_VARIABLE,
    LocalClusterOptions,
    Ports,
    autoscaling_config,
    head_command,
    head_environment,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray's own modules
    from ray.scripts.scripts import cli as ray_cli

PORTS = Ports(gcs=7001, client=7002, dashboard_metrics=7003, autoscaler_metrics=7004)
FOLDER, TOKEN = Path("/tmp/bgrpo-abcdefgh"), Path("/home/u/.bgrpo/cluster/token")


@settings(deadline=None, max_examples=20)
@given(max_nodes=st.integers(2, 50), cpus=st.integers(1, 64), idle=st.floats(0.05, 600))
def test_rays_autoscaler_reads_the_limits_that_were_asked_for(
    tmp_path_factory: pytest.TempPathFactory, max_nodes: int, cpus: int, idle: float
) -> None:
    path = tmp_path_factory.mktemp("config") / "autoscaler.yaml"
    path.write_text(json.dumps(autoscaling_config(LocalClusterOptions(max_nodes, cpus, idle, 8265), PORTS)))
    assert yaml.safe_load(path.read_text()) == json.loads(path.read_text())
    read = FileConfigReader(str(path)).get_cached_autoscaling_config()
    assert read.get_max_num_worker_nodes() == max_nodes - 1
    assert read.get_idle_timeout_s() == pytest.approx(idle * 60)
    types = read.get_node_type_configs()
    assert types[read.get_head_node_type()].resources == {"CPU": cpus, "learner": 1}
    worker = types["worker"]
    assert (worker.min_worker_nodes, worker.max_worker_nodes) == (0, max_nodes - 1)
    assert (worker.resources["CPU"], worker.resources["rollout"]) == (cpus, 1)


def test_rays_provider_is_where_the_configuration_says() -> None:
    module, _, name = autoscaling_config(LocalClusterOptions(3, 2, 1.0, 8265), PORTS)["provider"]["module"].rpartition(
        "."
    )
    assert hasattr(importlib.import_module(module), name)


def test_ray_start_knows_every_option_and_listens_on_this_machine_alone() -> None:
    words = head_command("ray", LocalClusterOptions(3, 2, 1.0, 28265), PORTS, FOLDER, FOLDER / "autoscaler.yaml")
    assert words[:3] == ["ray", "start", "--head"]
    start = ray_cli.commands["start"]
    given = start.make_context("start", words[2:]).params
    assert (given["node_ip_address"], given["dashboard_host"]) == ("127.0.0.1", "127.0.0.1")
    assert (given["port"], given["dashboard_port"]) == (7001, 28265)
    assert given["block"], "the cluster ends with the process that is kept in the state"
    assert json.loads(given["resources"]) == {"learner": 1}


def test_the_head_inherits_no_other_clusters_settings_and_knows_its_token_by_name_only() -> None:
    outer = {
        "PATH": "/usr/bin",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_TOKEN": "of-another-cluster",
        "RAY_AUTH_MODE": "disabled",
        "RAY_PROMETHEUS_HOST": "http://127.0.0.1:9091",
        "MLFLOW_TRACKING_PASSWORD": "kept for jobs",
    }
    made = head_environment(outer, Path("/venv/bin"), PORTS, FOLDER, TOKEN)
    assert made["PATH"] == "/venv/bin:/usr/bin"
    assert made["RAY_AUTH_MODE"] == "token"
    assert made["RAY_AUTH_TOKEN_PATH"] == str(TOKEN)
    assert "RAY_AUTH_TOKEN" not in made
    assert "RAY_ADDRESS" not in made
    assert made["RAY_PROMETHEUS_HOST"] == "http://127.0.0.1:9091"
    assert made["MLFLOW_TRACKING_PASSWORD"] == "kept for jobs"
    assert made[CLUSTER_VARIABLE] == str(FOLDER)
    assert made[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0", "else Ray listens on all addresses"
    assert made["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
