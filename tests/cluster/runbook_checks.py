"""What must hold in cluster/README.md: each of its commands can be parsed or run, or says what it needs."""

from __future__ import annotations

import re
import shlex
import warnings
from typing import Any

import click
import typer
from cluster_file_checks import ENTRY_POINTS, REPOSITORY, job_configs

from bgrpo.cli.app import app
from bgrpo.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray's own modules
    from ray.scripts.scripts import cli as ray_cli

PARSED = "parsed by a test"
RUN = "run by a test"
NEEDS = {
    "needs Docker": {"docker"},
    "needs Kubernetes": {"kubectl", "helm", "export"},
    "needs a cloud": {"ray"},
}
CLOUD_COMMANDS = {"up", "down", "exec", "dashboard"}
SHELL = {"export", "chmod", "rm"}
RUNNABLE = {"curl"}
USAGE_ERRORS: Any = (click.UsageError, typer.BadParameter.__bases__[0])
"""Of the click that Ray uses, and of typer, which may have its own copy."""


def commands_of(text: str) -> list[tuple[str, str]]:
    """(command, mark) of every line of the shell blocks; the mark is what follows the last ``#``."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [(command.strip(), mark.strip()) for command, _, mark in (line.rpartition("# ") for line in lines)]


def check_command(command: str, mark: str) -> list[str]:
    """Problems of one command line; it is not run."""
    words = shlex.split(command)
    if not words:
        return [f"{mark}: carries no mark"]
    problems = [f"{command}: {word} does not exist" for word in words if _is_missing(word)]
    if mark in NEEDS:
        problems += [] if words[0] in NEEDS[mark] else [f"{command}: is not what {mark!r} is for"]
    elif mark not in (PARSED, RUN):
        return [f"{command}: mark {mark!r}"]
    if words[0] == "ray":
        if (words[1] in CLOUD_COMMANDS) != (mark == "needs a cloud"):
            problems.append(f"{command}: mark {mark!r}")
        problems += parse(ray_cli, words)[1]
    elif words[0] == "bgrpo":
        problems += _check_bgrpo(words)
    elif mark in (PARSED, RUN) and words[0] not in (SHELL | RUNNABLE if mark == RUN else SHELL):
        problems.append(f"{command}: cannot be parsed here")
    return problems


def _is_missing(word: str) -> bool:
    return word.startswith("cluster/") and not (REPOSITORY / word).exists()


def _check_bgrpo(words: list[str]) -> list[str]:
    given, problems = parse(typer.main.get_command(app), words)
    module = f"ray_jobs.{'train' if words[1] == 'chaos' else words[1]}"
    if problems or module not in ENTRY_POINTS or given.get("resume") is not None:
        return problems
    config = [] if given["config"] is None else ["--config", given["config"]]
    try:
        job_configs(shlex.join(["python", "-m", module, *config, *(given["overrides"] or [])]))
    except UserError as error:
        problems.append(str(error))
    return problems


def parse(command: Any, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Have click parse a command line, without running it: the parameters, and what it refuses."""
    words = words[: words.index(">")] if ">" in words else words
    position = 1
    while hasattr(command, "commands"):
        name = words[position] if position < len(words) else ""
        if name not in command.commands:
            return {}, [f"{shlex.join(words)}: no command {name!r}"]
        command, position = command.commands[name], position + 1
    try:
        return command.make_context(command.name, words[position:]).params, []
    except USAGE_ERRORS as error:
        return {}, [f"{shlex.join(words)}: {error}"]


def check_ray_start(command: str) -> list[str]:
    """Options of the ``ray start`` in a command line, variables before it included."""
    words = shlex.split(command)
    return parse(ray_cli, words[words.index("ray") :])[1]
