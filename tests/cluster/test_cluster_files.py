"""The files of cluster/: they hold what they promise, and each check notices a file in which it does not hold."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cluster_file_checks import (
    CLUSTER,
    IMAGE,
    PROJECT,
    break_one,
    check_compose,
    check_constraints,
    check_dockerfile,
    check_image,
    check_launcher,
    read_all,
)


def test_the_launcher_file_is_valid_and_closed() -> None:
    assert check_launcher(read_all(CLUSTER / "ray-cluster.yaml")[0]) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("idle_minutes", 5, "Ray's validator"),
        ("head_node_type", "boss", "Ray's validator"),
        ("max_workers", 2, "Ray's validator"),
        ("available_node_types.rollout.min_workers", 9, "min_workers <= max_workers"),
        ("available_node_types.head.resources.CPU", 8, "the head computes"),
        ("available_node_types.learner.node_config.SecurityGroupIds", ..., "no SecurityGroupIds"),
        ("head_start_ray_commands.1", "ray start --head --num-cpus=0 --dashboard-host=127.0.0.1", "RAY_AUTH_MODE"),
        ("worker_start_ray_commands.1", "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379", "TOKEN_PATH"),
        ("head_start_ray_commands.1", "RAY_AUTH_MODE=token ray start --dashboard-host=0.0.0.0", "dashboard-host"),
        ("file_mounts", {"/home/ubuntu/bgrpo-source": "."}, "the token is not copied"),
        ("setup_commands.9", 'test "$(~/bgrpo/bin/bgrpo --version)" = 0.0.1', "--version"),
    ],
)
def test_a_broken_launcher_file_is_noticed(path: str, value: Any, problem: str) -> None:
    break_one(check_launcher, read_all(CLUSTER / "ray-cluster.yaml")[0], path, value, problem)


def test_compose_is_valid_and_closed() -> None:
    tree = read_all(CLUSTER / "compose.yaml")[0]
    assert check_compose(tree) == []
    assert tree["services"].keys() == {"head", "worker", "mlflow", "prometheus", "grafana"}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("services.head.ports.0", "8265:8265", "port 8265:8265 is open"),
        ("services.mlflow.ports.0", "0.0.0.0:5000:5000", "is open"),
        ("services.grafana.image", "grafana/grafana:latest", "no version"),
        ("services.prometheus.image", "prom/prometheus", "no version"),
        ("services.head.image", "bgrpo:0.0.1", f"expected {IMAGE}"),
        ("services.worker.environment.RAY_AUTH_MODE", "disabled", "without RAY_AUTH_MODE=token"),
        ("services.worker.environment.RAY_AUTH_TOKEN_PATH", "/run/secrets/other", "no secret of the service"),
        ("services.worker.volumes", [], "does not see the run folder"),
        ("services.worker.depends_on", ["boss"], "depends on boss?"),
        ("services.prometheus.volumes.0", "./metrics.yml:/etc/prometheus/prometheus.yml:ro", "volume ./metrics.yml?"),
        ("services.head.build.dockerfile", "Dockerfile", "no Dockerfile"),
        ("services.head.comand", "x", "('comand' was unexpected)"),
        ("services.head.depends_on", 3, "$.services.head.depends_on: 3 is not valid"),
        ("volume", {}, "$: 'volume' does not match"),
        ("services.grafana.environment.GF_SECURITY_ADMIN_PASSWORD", "x", "a password in the file"),
        ("services.mlflow.cap_drop", ..., "keeps capabilities"),
    ],
)
def test_a_broken_compose_file_is_noticed(path: str, value: Any, problem: str) -> None:
    break_one(check_compose, read_all(CLUSTER / "compose.yaml")[0], path, value, problem)


def test_prometheus_and_grafana_point_at_compose_services() -> None:
    services = read_all(CLUSTER / "compose.yaml")[0]["services"]
    scraped = read_all(CLUSTER / "prometheus.yml")[0]["scrape_configs"][0]["dns_sd_configs"][0]
    assert set(scraped["names"]) == {
        name for name, entry in services.items() if "ray start" in entry.get("command", "")
    }
    assert all(f"--metrics-export-port={scraped['port']}" in services[name]["command"] for name in scraped["names"])
    provisioning = CLUSTER / "grafana" / "provisioning"
    source = read_all(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    mounted = services["grafana"]["volumes"][0].split(":")[1]
    assert services["grafana"]["environment"]["GF_PATHS_PROVISIONING"] == f"{mounted}/provisioning"
    provider = read_all(provisioning / "dashboards" / "bgrpo.yaml")[0]["providers"][0]
    assert provider["options"]["path"] == f"{mounted}/dashboards"


def test_the_dockerfile_installs_this_version_for_a_user_without_privileges() -> None:
    assert check_dockerfile((CLUSTER / "Dockerfile").read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("python:3.11-slim-bookworm", "python:3.10-slim-bookworm", "expected Python"),
        ("python:3.11-slim-bookworm", "python:latest", "no version"),
        ("COPY bgrpo bgrpo", "COPY bgrpo tests bgrpo", "COPY tests"),
        ("COPY ray_jobs ray_jobs", "COPY jobs ray_jobs", "COPY jobs"),
        ("USER ${UID}", "USER root", "runs as root"),
        ("HEALTHCHECK", "LABEL", "no HEALTHCHECK"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=1234", "a secret"),
        (PROJECT["version"] + "\nENV", "0.0.1\nENV", "the version's check"),
    ],
)
def test_a_broken_dockerfile_is_noticed(old: str, new: str, problem: str) -> None:
    text = (CLUSTER / "Dockerfile").read_text("utf-8")
    assert old in text
    found = check_dockerfile(text.replace(old, new))
    assert any(problem in line for line in found), found


def test_constraints_pin_what_pyproject_requires() -> None:
    text = (CLUSTER / "constraints.txt").read_text("utf-8")
    assert check_constraints(text) == []
    assert check_constraints(text.replace("ray==2.60.0", "ray==2.61.0")) == ["ray==2.61.0 is outside <2.61,>=2.60"]
    assert check_constraints(text.replace("numpy==", "nunpy==")) == [
        "numpy is not pinned",
        "nunpy is pinned, but not required",
    ]


def test_images_name_a_version() -> None:
    assert check_image(IMAGE) == []
    assert check_image("prom/prometheus:v3.5.0") == []
    assert [check_image(image) for image in ("bgrpo", "x:latest")] == [
        ["image bgrpo: no version"],
        ["image x:latest: no version"],
    ]


def test_no_file_holds_a_token_or_a_latest_tag() -> None:
    for path in [path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix in (".yaml", ".yml", ".md", "")]:
        text = path.read_text("utf-8")
        assert ":latest" not in text, path
        assert not re.search(r"RAY_AUTH_TOKEN[:=] ?['\"]?[0-9a-f]{8}", text), path
