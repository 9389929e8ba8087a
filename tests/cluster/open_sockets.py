"""What listens for a cluster, and what it lets somebody do who has no token."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
import psutil

ANSWER_S = 20.0
REFUSED = (401, 403)
ABSENT = (404, 405)
REQUESTS = (
    ("GET", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("POST", "/api/job_agent/jobs/"),
    ("GET", "/nodes?view=summary"),
    ("GET", "/api/v0/logs"),
    ("PUT", "/api/serve/applications/"),
    ("POST", "/get_or_create_runtime_env"),
    ("POST", "/delete_runtime_env_if_possible"),
)
"""They do or tell something on one of Ray's HTTP servers; the others do not know them."""
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/GetTraceback",
)
"""One of each of Ray's gRPC servers; the others do not know it."""

LEARNER = "RayTrainWorker"
"""Its other sockets are PyTorch's, where learners meet: they know no token, as SECURITY.md says."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket of a process."""

    address: str
    port: int
    process: str

    @property
    def is_loopback(self) -> bool:
        """True when only this machine reaches it."""
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


def listeners(processes: Iterable[psutil.Process]) -> list[Listener]:
    """All listening TCP sockets of these processes."""
    found = []
    for process in processes:
        try:
            title = " ".join(process.cmdline())[:150]
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append(Listener(connection.laddr.ip, connection.laddr.port, title))
        except psutil.NoSuchProcess:
            continue
    return found


def http_answer(port: int, method: str, path: str, token: str | None = None) -> tuple[int, str] | None:
    """Status and beginning of the body; None when the server does not speak HTTP/1, or says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, body=b"{}" if method != "GET" else None, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read(200).decode("utf-8", "replace")
    except (http.client.BadStatusLine, ConnectionResetError, TimeoutError):
        return None
    finally:
        connection.close()


def grpc_codes(port: int, token: str | None = None) -> dict[str, grpc.StatusCode]:
    """What each of :data:`METHODS` ends with on this port, up to the first that is not answered at all."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    codes = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=ANSWER_S, metadata=metadata)
                codes[method] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                codes[method] = error.code()
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    break
    return codes


def what_is_open(listener: Listener) -> list[str]:
    """What somebody without the token can do there; empty when that is nothing but read metrics, or it has closed."""
    if listener.is_loopback and _has_closed(listener.port):
        return []
    problems = []
    for method, path in REQUESTS:
        answer = http_answer(listener.port, method, path)
        if answer is None:
            return _open_methods(listener)
        if answer[0] not in (*REFUSED, *ABSENT) and not answer[1].startswith("# HELP"):
            problems.append(f"{listener}: {method} {path} gives {answer}")
    return problems


def _has_closed(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(ANSWER_S)
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def _open_methods(listener: Listener) -> list[str]:
    codes = grpc_codes(listener.port)
    if LEARNER in listener.process and set(codes.values()) <= {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }:
        return []
    if grpc.StatusCode.UNAUTHENTICATED not in codes.values():
        return [f"{listener}: neither HTTP nor one of Ray's gRPC servers that wants a token: {codes}"]
    closed = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
    return [f"{listener}: {method} gives {code}" for method, code in codes.items() if code not in closed]
