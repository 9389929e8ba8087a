"""The local cluster under test, driven by the runbook's own commands."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_file_checks import CLUSTER
from runbook_checks import RUN, commands_of

from bgrpo.cluster.local_state import StateFolder

REPOSITORY = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:8265"
COMMANDS = {command for command, mark in commands_of((CLUSTER / "README.md").read_text("utf-8")) if mark == RUN}
"""Of the runbook, those that say that a test runs them."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"waited {limit_s:g} s for {what}"
        time.sleep(0.2)
    return time.monotonic() - start


@dataclass(slots=True)
class RunbookShell:
    """Runs commands of the runbook, on a cluster with a free port in a home of its own.

    Attributes:
        home: home folder; the cluster's state lies there.
        port: of the dashboard.
        environment: of every command; ``export`` adds to it.
        used: commands that were run.
        output: all that they printed, except to logs.
    """

    home: Path
    port: int
    environment: dict[str, str]
    used: set[str] = field(default_factory=set)
    output: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, home: Path, secrets: dict[str, str]) -> RunbookShell:
        """A shell without any of Ray's variables; ``secrets`` are variables that the cluster inherits."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= secrets | {
            "HOME": str(home),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        }
        return cls(home, free_port(), environment)

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> StateFolder:
        """The cluster's state."""
        return StateFolder(self.home / ".bgrpo" / "cluster")

    def run(self, command: str, *more: str, limit_s: float, expect: int = 0, **words: str) -> str:
        """Run a command of the runbook to its end.

        Args:
            command: as the runbook has it.
            more: further arguments.
            limit_s: longest time.
            expect: exit status.
            words: what stands for ``JOB`` and the like.

        Returns:
            What it printed.
        """
        child = self.begin(command, *more, **words)
        text = child.communicate(timeout=limit_s)[0].decode()
        self.output.append(text)
        assert child.returncode == expect, f"{command}: status {child.returncode}\n{text}"
        return text

    def begin(self, command: str, *more: str, log: Path | None = None, **words: str) -> subprocess.Popen[bytes]:
        """Start a command of the runbook; its output goes to ``log``."""
        assert command in COMMANDS, f"the runbook does not say that a test runs {command!r}"
        self.used.add(command)
        given = command.replace(URL, self.address)
        for name, value in words.items():
            given = given.replace(name, value)
        output = subprocess.PIPE if log is None else log.open("wb")
        return subprocess.Popen(
            [*shlex.split(given), *more], env=self.environment, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT
        )

    def export(self, command: str) -> None:
        """An ``export`` of the runbook."""
        assert command in COMMANDS, command
        self.used.add(command)
        for word in shlex.split(command)[1:]:
            name, _, value = word.partition("=")
            self.environment[name] = value.replace("~", str(self.home))

    def status(self) -> dict[str, Any]:
        """``bgrpo cluster status --json``."""
        return json.loads(self.run("bgrpo cluster status", "--json", limit_s=120))
