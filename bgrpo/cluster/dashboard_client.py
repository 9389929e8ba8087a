"""The few questions that bgrpo asks a Ray dashboard, over HTTP with the cluster's token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

ANSWER_S = 10.0
UNFINISHED = ("PENDING", "RUNNING")


class DashboardError(Exception):
    """The dashboard does not answer, or not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is part of the cluster.

    Attributes:
        id: Ray's name of it.
        is_head: True for one of them.
        resources: what it offers, in total.
        usage: what is reserved of it, in Ray's words: ``1.5/2.0 CPU``, …; empty before its first report.
        watched: its agent reports: only then it can take jobs.
    """

    id: str
    is_head: bool
    resources: dict[str, float]
    usage: tuple[str, ...]
    watched: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job: its id, its state (``RUNNING``, ``SUCCEEDED`` …) and its command line."""

    id: str
    status: str
    command: str

    @property
    def unfinished(self) -> bool:
        """True while it runs, or waits to."""
        return self.status in UNFINISHED


class Dashboard:
    """One cluster's dashboard. Every method raises :class:`DashboardError` when it does not answer in time.

    Args:
        address: for example ``http://127.0.0.1:8265``.
        token: of the cluster.
    """

    def __init__(self, address: str, token: str | None) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def nodes(self) -> list[Node]:
        """The nodes that are alive, the head first."""
        listed = self._ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        reports = self._ask("/nodes?view=summary")["data"]
        usage = reports.get("nodeLogicalResources", {})
        watched = {entry["raylet"].get("nodeId") for entry in reports["summary"] if "cpu" in entry}
        nodes = [
            Node(
                id=entry["node_id"],
                is_head=entry["is_head_node"],
                resources=entry["resources_total"],
                usage=tuple(usage.get(entry["node_id"], "").splitlines()),
                watched=entry["node_id"] in watched,
            )
            for entry in listed
            if entry["state"] == "ALIVE"
        ]
        return sorted(nodes, key=lambda node: (not node.is_head, node.id))

    def jobs(self) -> list[Job]:
        """Submitted jobs, the oldest first."""
        listed = [entry for entry in self._ask("/api/jobs/") if entry.get("submission_id")]
        listed.sort(key=lambda entry: entry.get("start_time") or 0)
        return [Job(entry["submission_id"], entry["status"], entry["entrypoint"]) for entry in listed]

    def stop_job(self, job: str) -> None:
        """Ask a job to stop; does not wait for it."""
        self._ask(f"/api/jobs/{job}/stop", method="POST")

    def _ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self._address}{path}", headers=self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            reason = error.read(200).decode("utf-8", "replace")
            raise DashboardError(f"{self._address}{path}: {error.code} {reason}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DashboardError(f"{self._address}{path}: {error}") from error
