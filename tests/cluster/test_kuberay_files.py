"""The files of cluster/kuberay/: valid for KubeRay, closed, and each check notices where they are not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cluster_file_checks import CLUSTER, IMAGE, break_one, check_job_fits, read_all, with_change
from kuberay_checks import (
    check_cluster,
    check_job,
    check_kubernetes,
    check_network,
    check_pod,
    check_service,
    smallest_cluster,
)

KUBERAY = CLUSTER / "kuberay"
KINDS = ("RayCluster", "RayJob", "Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy")
Tree = dict[str, Any]


def manifests(kind: str) -> list[Tree]:
    """Every Kubernetes object of one kind."""
    return [tree for path in sorted(KUBERAY.glob("*.yaml")) for tree in read_all(path) if tree["kind"] == kind]


def claims() -> set[str]:
    return {tree["metadata"]["name"] for tree in manifests("PersistentVolumeClaim")}


def test_the_kubernetes_cluster_is_valid_and_closed() -> None:
    (cluster,) = manifests("RayCluster")
    assert check_cluster(cluster, claims()) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (
            "spec.workerGroupSpecs.0.maxReplica",
            3,
            "'maxReplica' was unexpected",
        ),
        ("spec.workerGroupSpecs.0.maxReplicas", "3", "$.workerGroupSpecs[0].maxReplicas: '3' is not of type"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        (
            "spec.headGroupSpec.template.spec.containers.0.volumeMount",
            [],
            "containers.0.volumeMount: Extra inputs",
        ),
        (
            "spec.headGroupSpec.template.spec.containers.0.ports.0.containerPort",
            "http",
            "containerPort: Input should be",
        ),
        ("spec.autoscalerOptions.resources.limit", {}, "autoscalerOptions.resources.limit: Extra inputs"),
        ("spec.autoscalerOptions.upscalingMode", "Fast", "'Fast' is not one of"),
        ("spec.rayVersion", "2.59.0", "rayVersion 2.59.0"),
        ("spec.authOptions", ..., "no token"),
        ("spec.authOptions.mode", "disabled", "no token"),
        ("spec.autoscalerOptions.version", "v1", "not its version 2"),
        ("spec.headGroupSpec.rayStartParams", {}, "the head computes"),
        ("spec.headGroupSpec.serviceType", "LoadBalancer", "open to the outside"),
        ("spec.workerGroupSpecs.1.minReplicas", 9, "rollout: minReplicas above maxReplicas"),
        ("spec.workerGroupSpecs.1.template.spec.restartPolicy", "Always", "restartPolicy Never"),
        ("spec.workerGroupSpecs.2.template.spec.containers.0.image", "bgrpo:latest", "no version"),
        (
            "spec.workerGroupSpecs.2.template.spec.containers.0.image",
            "registry.example.com/bgrpo:9",
            f"expected {IMAGE}",
        ),
        ("spec.workerGroupSpecs.0.template.spec.securityContext.runAsUser", 0, "learner: may run as root"),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.securityContext", {}, "may gain privileges"),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits", {}, "learner: no limits"),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts", [], "does not see the run folder"),
    ],
)
def test_a_broken_kubernetes_cluster_is_noticed(path: str, value: Any, problem: str) -> None:
    (cluster,) = manifests("RayCluster")
    break_one(lambda tree: check_cluster(tree, claims()), cluster, path, value, problem)


@pytest.mark.parametrize("job", ["train", "sweep"])
def test_jobs_name_modules_and_configurations_and_have_room_from_the_start(job: str) -> None:
    (manifest,) = read_all(KUBERAY / f"rayjob-{job}.yaml")
    (cluster,) = manifests("RayCluster")
    groups = smallest_cluster(cluster)
    assert check_job(manifest, cluster["metadata"]["name"]) == []
    entrypoint = manifest["spec"]["entrypoint"]
    assert check_job_fits(entrypoint, list(groups.values()), groups["rollout"][1]) == []
    (service,) = manifests("Service")
    assert f"tracking.uri=http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" in entrypoint
    assert "run.dir=/runs" in entrypoint


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ray_jobs.train", "ray_jobs.trainer", "expected python -m"),
        ("quickstart", "quickest", "no such file"),
        ("rollout.actors=2", "rollout.actor=2", "did you mean 'rollout.actors'"),
        ("rollout.actors=2", "rollout.actors=3", "the cluster is too small"),
        (r"(cpus_per_worker)=4(.*)learner.node_resource=learner_node", r"\1=2\2", "a learner fits on a spot node"),
        ("rollout.node_resource=rollout_node", "", "rollout.actors may run on nodes of any kind"),
        ("verifier.node_resource=verifier_node", "", "verifiers may run on nodes of any kind"),
        ("=rollout_node", "=rollout_nodes", "2 × 0.001 = 0.002 rollout_nodes, the cluster has 0"),
    ],
)
def test_a_broken_entrypoint_is_noticed(old: str, new: str, problem: str) -> None:
    (manifest,) = read_all(KUBERAY / "rayjob-train.yaml")
    groups = smallest_cluster(manifests("RayCluster")[0])
    entrypoint = manifest["spec"]["entrypoint"]
    assert re.search(old, entrypoint)
    found = check_job_fits(re.sub(old, new, entrypoint), list(groups.values()), groups["rollout"][1])
    assert any(problem in line for line in found), found


def test_a_job_on_another_cluster_or_with_an_unknown_field_is_noticed() -> None:
    (manifest,) = read_all(KUBERAY / "rayjob-sweep.yaml")
    assert check_job(manifest, "other") == ["not on the cluster other"]
    (problem,) = check_job(with_change(manifest, "spec.entryPoint", "x"), "bgrpo")
    assert "'entryPoint' was unexpected" in problem
    assert len(check_job(with_change(manifest, "spec.submissionMode", "K8sJobMode"), "bgrpo")) == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("Ray")])
def test_kubernetes_objects_are_valid(kind: str) -> None:
    for manifest in manifests(kind):
        assert check_kubernetes(f"V1{kind}", manifest, kind) == []
        assert check_kubernetes(f"V1{kind}", with_change(manifest, "spec.typ", "x"), kind) == [
            f"{kind}.spec.typ: Extra inputs are not permitted"
        ]


def test_mlflow_is_closed() -> None:
    (deployment,) = manifests("Deployment")
    assert check_pod("mlflow", deployment["spec"]["template"]) == []
    (service,) = manifests("Service")
    assert check_service(service) == []
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (claim,) = [
        volume["persistentVolumeClaim"]["claimName"] for volume in deployment["spec"]["template"]["spec"]["volumes"]
    ]
    assert claim in claims()
    assert check_service(with_change(service, "spec.type", "NodePort")) == ["mlflow: NodePort is open to the outside"]
    assert check_pod("mlflow", with_change(deployment["spec"]["template"], "spec.securityContext", {})) == [
        "mlflow: may run as root",
        "mlflow: no seccomp profile",
    ]


def test_the_network_policies_admit_the_cluster_and_the_operator_only() -> None:
    policies = manifests("NetworkPolicy")
    assert check_network(policies, "bgrpo") == []
    assert check_network(policies[1:], "bgrpo") == ["nothing is denied by default"]
    names = [policy["metadata"]["name"] for policy in policies]
    for name, path, value in [
        ("ray-nodes", "spec.ingress.0.from", []),
        ("ray-nodes", "spec.ingress.0.from.0", {"ipBlock": {"cidr": "0.0.0.0/0"}}),
        ("ray-nodes", "spec.ingress.0.from.0.namespaceSelector", {}),
        ("operator-to-head", "spec.ingress.0.ports", []),
        ("operator-to-head", "spec.ingress.0.from.0.namespaceSelector", {}),
        ("ray-nodes-to-mlflow", "spec.ingress.0.from.0.podSelector", {}),
    ]:
        at = names.index(name)
        assert len(check_network(with_change(policies, f"{at}.{path}", value), "bgrpo")) == 1, (name, path)


def test_the_kustomization_lists_every_file_but_the_jobs() -> None:
    (kustomization,) = read_all(KUBERAY / "kustomization.yaml")
    there = {path.name for path in KUBERAY.glob("*.yaml")}
    assert set(kustomization["resources"]) == {
        name for name in there if not name.startswith(("rayjob-", "kustomization"))
    }
    (image,) = kustomization["images"]
    assert (image["name"], image["newTag"]) == tuple(IMAGE.split(":"))
    namespaces = {
        tree["metadata"].get("namespace", kustomization["namespace"]) for kind in KINDS for tree in manifests(kind)
    }
    assert namespaces == {manifests("Namespace")[0]["metadata"]["name"]}
