"""The learners' process group: two processes meet, add up, and listen on the address they were given alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bgrpo.cluster.private_ray import LOOPBACK_INTERFACE

WORKER = """
import json
import sys
import psutil
import torch
import torch.distributed as dist
from bgrpo.distributed.train.process_group import join_group, serve_store

rank = int(sys.argv[1])
port = serve_store("127.0.0.1", 120.0) if rank == 0 else int(sys.argv[2])
print(port, flush=True)
join_group("gloo", "127.0.0.1", port, rank, 2, 120.0)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
listening = [c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
dist.barrier()
print(json.dumps({"sum": total.item(), "listening": [ip.removeprefix("::ffff:") for ip in listening]}), flush=True)
dist.destroy_process_group()
"""


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, *arguments]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_meet_without_listening_on_other_addresses() -> None:
    first = _start("0")
    assert first.stdout is not None
    port = first.stdout.readline().strip()
    second = _start("1", port)
    for child in (second, first):
        output = child.communicate(timeout=250)[0]
        assert child.returncode == 0
        result = json.loads(output.splitlines()[-1])
        assert result["sum"] == 3.0
        assert set(result["listening"]) == {"127.0.0.1"}, "PyTorch's own store would listen on all addresses"
