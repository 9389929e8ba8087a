"""What must hold in the files of cluster/kuberay/: each check returns the problems it found, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes.client
import pydantic
import yaml
from cluster_file_checks import check_image, required, schema_problems
from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources

SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay_schema.yaml").read_text("utf-8"))
OWN_AUTOSCALER_FIELDS = {"idleTimeoutSeconds", "upscalingMode", "version"}
RESTRICTED_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
Manifest = dict[str, Any]


def check_kubernetes(model: str, tree: Manifest, name: str) -> list[str]:
    """Unknown fields, missing ones and wrong types, by the Kubernetes client's model of an object or a part of one."""
    try:
        getattr(kubernetes.client, model).model_validate(tree, extra="forbid")
    except pydantic.ValidationError as error:
        return [f"{name}.{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
    return []


def check_custom_resource(manifest: Manifest) -> list[str]:
    """Version and fields of a RayCluster or RayJob."""
    problems = [] if manifest["apiVersion"] == "ray.io/v1" else [f"apiVersion {manifest['apiVersion']}"]
    return problems + schema_problems(manifest["spec"], {"$ref": f"#/$defs/{manifest['kind']}"} | SCHEMA)


def check_pod(name: str, template: Manifest) -> list[str]:
    """What Pod Security "restricted" asks for, resources, and an image of our version."""
    pod = template["spec"]
    problems = check_kubernetes("V1PodTemplateSpec", template, name)
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0:
        problems.append(f"{name}: may run as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        problems.append(f"{name}: no seccomp profile")
    for container in pod["containers"]:
        problems += check_image(container["image"])
        if container.get("securityContext") != RESTRICTED_CONTAINER:
            problems.append(f"{name}: the container may gain privileges")
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= container.get("resources", {}).get(kind, {}).keys():
                problems.append(f"{name}: no {kind}")
    return problems


def check_cluster(manifest: Manifest, claims: set[str]) -> list[str]:
    """A RayCluster: version, token, autoscaling, an idle head, groups within their limits, the run folder everywhere.

    Args:
        manifest: of the cluster.
        claims: names of the volume claims.
    """
    spec, problems = manifest["spec"], check_custom_resource(manifest)
    if problems:
        return problems
    if spec["rayVersion"] not in required("ray"):
        problems.append(f"rayVersion {spec['rayVersion']}: expected {required('ray')}")
    if spec.get("authOptions", {}).get("mode") != "token":
        problems.append("no token")
    options = spec.get("autoscalerOptions", {})
    if spec.get("enableInTreeAutoscaling") is not True or options.get("version") != "v2":
        problems.append("no autoscaling, or not its version 2")
    container = {key: value for key, value in options.items() if key not in OWN_AUTOSCALER_FIELDS}
    problems += check_kubernetes("V1Container", {"name": "autoscaler"} | container, "autoscalerOptions")
    if options.get("securityContext") != RESTRICTED_CONTAINER:
        problems.append("the autoscaler's container may gain privileges")
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    if head["rayStartParams"].get("num-cpus") != "0":
        problems.append("the head computes")
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        problems.append("the head's service is open to the outside")
    for group in groups:
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            problems.append(f"{group['groupName']}: minReplicas above maxReplicas")
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            problems.append(f"{group['groupName']}: autoscaler v2 wants restartPolicy Never")
    for name, template in [("head", head["template"])] + [(group["groupName"], group["template"]) for group in groups]:
        problems += check_pod(name, template)
        claimed = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in template["spec"].get("volumes", [])}
        mounts = template["spec"]["containers"][0].get("volumeMounts", [])
        seen = {mount["mountPath"]: claimed.get(mount["name"]) for mount in mounts}
        if seen.get("/runs") not in claims:
            problems.append(f"{name}: does not see the run folder")
    return problems


def smallest_cluster(manifest: Manifest) -> dict[str, tuple[int, dict[str, float]]]:
    """For each group of workers, the least number and what one of them offers to Ray, as the autoscaler reads it."""
    groups = {}
    for group in manifest["spec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = group["rayStartParams"].get("num-cpus", limits["cpu"])
        offered = {"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        offered |= _get_custom_resources({}, group["rayStartParams"], group["groupName"])
        groups[group["groupName"]] = group["minReplicas"], offered
    return groups


def check_job(manifest: Manifest, cluster: str) -> list[str]:
    """A RayJob: known fields, on the one cluster, submitted without a further pod."""
    spec, problems = manifest["spec"], check_custom_resource(manifest)
    if spec.get("clusterSelector") != {"ray.io/cluster": cluster}:
        problems.append(f"not on the cluster {cluster}")
    if spec.get("submissionMode") != "HTTPMode":
        problems.append("a submitter pod would need the token and a way through the network policies")
    return problems


def check_network(policies: list[Manifest], cluster: str) -> list[str]:
    """Everything is denied but cluster to cluster, operator to the dashboard, cluster to MLflow."""
    problems, denies = [], False
    ours, operator = {"ray.io/cluster": cluster}, {"app.kubernetes.io/name": "kuberay-operator"}
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        denies |= spec["podSelector"] == {} and "Ingress" in spec["policyTypes"] and not spec.get("ingress")
        for rule in spec.get("ingress", []):
            ports = [port["port"] for port in rule.get("ports", [])]
            if not rule.get("from"):
                problems.append(f"{name}: from anywhere")
            for peer in rule.get("from", []):
                labels = peer.get("podSelector", {}).get("matchLabels")
                namespace = peer.get("namespaceSelector", {}).get("matchLabels")
                inside = labels == ours and "namespaceSelector" not in peer
                if not inside and not (labels == operator and namespace and ports == [8265]):
                    problems.append(f"{name}: from {peer}")
    return problems if denies else [*problems, "nothing is denied by default"]


def check_service(manifest: Manifest) -> list[str]:
    """A Service must stay inside the cluster."""
    kind = manifest["spec"].get("type", "ClusterIP")
    return [] if kind == "ClusterIP" else [f"{manifest['metadata']['name']}: {kind} is open to the outside"]
