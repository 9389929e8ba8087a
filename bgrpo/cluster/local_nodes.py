"""The nodes that a local cluster's autoscaler starts and ends. Loaded by Ray's monitor, which runs the autoscaler."""

from __future__ import annotations

import uuid
from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodeProvider(FakeMultiNodeProvider):
    """Ray's nodes on one machine, each with a folder of its own for the working directories of jobs.

    A node that ends removes that folder. Ray gives all nodes of a machine the same one, so that a node that leaves
    would take away the working directory of jobs that still run.
    """

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: Any
    ) -> None:
        """Start ``count`` nodes."""
        for _ in range(count):
            ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"runtime_resources_{uuid.uuid4().hex[:12]}"
            self._create_node_with_resources_and_labels(node_config, tags, 1, resources, labels)
