"""Asking Ray's autoscaler whether it could make the cluster large enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

ANSWER_S = 30.0  # the autoscaler looks at the cluster every five seconds
POLL_S = 0.5
AGREED = 2  # a node that has just left has made the autoscaler say yes too soon
logger = logging.getLogger(__name__)


def autoscaler_can_hold(bundles: Sequence[Mapping[str, float]], timeout_s: float = ANSWER_S) -> bool:
    """Whether the cluster, with every node that its autoscaler may add, has room for all of this at once.

    Node types are known to the autoscaler alone, so it is asked: as long as the question stands, it may start nodes
    that answer it. False when no autoscaler answers in time, as on a cluster without one.

    Args:
        bundles: what each process reserves.
        timeout_s: longest wait for the answer.
    """
    from ray.autoscaler.sdk import request_resources  # slow, and most processes never ask

    asked = [dict(bundle) for bundle in bundles if bundle]
    request_resources(bundles=asked)
    try:
        verdict = wait_for_verdict(_cluster_status, timeout_s, time.monotonic, time.sleep)
    finally:
        request_resources(bundles=[])
    if verdict is None:
        logger.warning("no autoscaler said within %g s whether the cluster can grow", timeout_s)
    return verdict is True


def wait_for_verdict(
    status: Callable[[], Any],
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> bool | None:
    """False once the autoscaler has said so, True once it has twice, None when it has not in time.

    Args:
        status: gives the cluster's ``GetClusterStatusReply``.
        timeout_s: longest wait.
        clock: seconds.
        sleep: waits this many seconds.
    """
    deadline = clock() + timeout_s
    seen = status().cluster_resource_state.cluster_resource_state_version
    agreed = 0
    while clock() < deadline:
        state = status().autoscaling_state
        if state.last_seen_cluster_resource_state_version > seen:
            if state.infeasible_cluster_resource_constraints:
                return False
            seen, agreed = state.last_seen_cluster_resource_state_version, agreed + 1
            if agreed == AGREED:
                return True
        sleep(POLL_S)
    return None


def _cluster_status() -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated import autoscaler_pb2

    client = GcsClient(ray.get_runtime_context().gcs_address)
    messages: Any = autoscaler_pb2  # generated, without types
    return messages.GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10))
